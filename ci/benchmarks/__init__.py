"""What asv tracks: ratios that compare across machines (`ratios`), and the time of the public functions (`functions`).

The environment is the existing one, in which perfsuite is installed from this checkout (`pip install -e '.[ci]'`). asv
takes no range of commits there: check out one after the other and run, each time from the folder ci/:

    asv machine --yes
    asv run --quick --python=same --set-commit-hash $(git rev-parse HEAD)

and at last `asv publish && asv preview`. `--python=same` and `-E existing:PYTHON` count as different environments.
"""
