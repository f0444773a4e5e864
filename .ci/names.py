"""Sees that each type name of the workspace has one meaning: no two top-level types share one, tests apart."""

import pathlib
import re
import subprocess
import sys

TYPE = re.compile(r"^(?:pub(?:\([a-z:]+\))? )?(?:struct|enum|trait|type|union) (\w+)", re.MULTILINE)


def main():
    places = {}
    for path in subprocess.check_output(["git", "ls-files", "*.rs"], text=True).split():
        folders = pathlib.Path(path).parts
        if "tests" in folders or "examples" in folders or folders[-1] == "tests.rs":
            continue
        for name in TYPE.findall(pathlib.Path(path).read_text()):
            places.setdefault(name, []).append(path)
    shared = {name: paths for name, paths in places.items() if len(paths) > 1}
    for name, paths in sorted(shared.items()):
        print(f"{name} is the name of {len(paths)} types: {', '.join(paths)}")
    sys.exit(bool(shared))


main()
