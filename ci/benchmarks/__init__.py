"""What asv tracks: ratios that compare across machines (`ratios`), and the time of the public functions (`functions`).

The environment is the existing one, in which perfsuite is installed from this checkout (`pip install -e '.[ci]'`), so a
commit is benchmarked by checking it out. From the folder ci/:

    asv machine --yes
    asv run --quick --python=same --set-commit-hash $(git rev-parse HEAD)
    asv publish && asv preview
"""
