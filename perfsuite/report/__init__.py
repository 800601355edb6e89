"""Reports: what a machine's trials say, as a page, as Markdown and as pictures. They measure nothing."""

from perfsuite.report.evidence import Evidence
from perfsuite.report.page import write

__all__ = ["Evidence", "write"]
