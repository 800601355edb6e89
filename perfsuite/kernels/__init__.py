"""The kernels that come with perfsuite: a checkout's top-level `kernels/`, or their copy in an installed wheel."""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2]
if (_checkout / "pyproject.toml").is_file() and (_checkout / "kernels").is_dir():
    __path__.append(str(_checkout / "kernels"))
