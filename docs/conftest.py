"""The examples on the pages are run by pytest; the scripts here belong to the build."""

collect_ignore_glob = ["*.py", "plots/*", "_build/*", "gallery/*"]
