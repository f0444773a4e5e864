"""Renders and checks what runs Trefoil: the manifests of k8s/ and the compose files of docker/.

Every manifest must fit its schema strictly; one without a schema is a fault. Every variable that a manifest or a
compose file sets must be one that `trefoil serve` reads. Takes the folder of the pinned tools and the binary.
"""

import copy
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import jsonschema
import kubernetes_validate
import yaml

# The oldest Kubernetes that the manifests are for, and the newest that the pinned schemas know.
VERSIONS = ["1.30", "1.37"]
COMPOSE_FILES = ["docker/docker-compose.yml", "docker/compose.all-in-one.yml"]

ROOT = pathlib.Path(__file__).resolve().parent.parent
SERVICE_MONITOR = json.loads((ROOT / ".ci/service-monitor.json").read_text())


def run(*command, **options):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def output(*command, **options):
    done = run(*command, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}:\n{done.stderr}")
    return done.stdout


def faults(manifest):
    """What is wrong with one manifest, for each version of Kubernetes."""
    if manifest["kind"] == "ServiceMonitor":
        validator = jsonschema.Draft202012Validator(SERVICE_MONITOR)
        return [error.message for error in validator.iter_errors(manifest)]
    found = []
    for version in VERSIONS:
        try:
            # An older schema in its place would be silent.
            if kubernetes_validate.validate(manifest, version, strict=True) != version:
                found.append(f"there is no schema of Kubernetes {version}")
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            found.append(f"{version}: {error.message}")
    return found


def see_that_faults_are_found(manifest):
    """A misspelt field and an unknown kind must not pass."""
    misspelt = copy.deepcopy(manifest)
    misspelt["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    unknown = {**manifest, "kind": "Trefoil"}
    assert faults(misspelt) and faults(unknown), "a broken manifest passed"


def variables(manifest):
    """The names of variables that a manifest gives a node."""
    if manifest["kind"] == "ConfigMap":
        yield from manifest["data"]
    if manifest["kind"] == "StatefulSet":
        for container in manifest["spec"]["template"]["spec"]["containers"]:
            yield from (variable["name"] for variable in container.get("env", []))


def check_kubernetes(kubectl, known):
    wrong = []
    for folder in sorted(path.parent for path in ROOT.glob("k8s/**/kustomization.yaml")):
        if "components" in folder.parts:
            continue  # rendered by an overlay
        name = str(folder.relative_to(ROOT))
        manifests = [each for each in yaml.safe_load_all(output(kubectl, "kustomize", name)) if each]
        for manifest in manifests:
            wrong += [f"{name}: {manifest['kind']}: {fault}" for fault in faults(manifest)]
            names = {each for each in variables(manifest) if each.startswith("TREFOIL_")}
            wrong += [f"{name}: {each} is read by nobody" for each in sorted(names - known)]
            if manifest["kind"] == "StatefulSet":
                see_that_faults_are_found(manifest)
        print(f"{name}: {len(manifests)} manifests against Kubernetes {' and '.join(VERSIONS)}")
    return wrong


def check_compose(compose, known):
    wrong = []
    used = re.findall(r"^(\w+)=", (ROOT / "docker/.env").read_text(), re.MULTILINE)
    clean = {name: value for name, value in os.environ.items() if name not in used}
    for file in COMPOSE_FILES:
        services = json.loads(output(compose, "-f", file, "config", "--format", "json", env=clean))["services"]
        names = {name for service in services.values() for name in service["environment"]}
        wrong += [f"{file}: {each} is read by nobody" for each in sorted(names - known)]
        texts = [(ROOT / each).read_text() for each in (file, "docker/node.yml")]
        needed = sorted(set(re.findall(r"\$\{(\w+)", "".join(texts))))
        for name in needed:
            # Set, but empty, in the shell: that wins over docker/.env.
            refused = run(compose, "-f", file, "config", "--quiet", env={**clean, name: ""})
            if refused.returncode == 0 or name not in refused.stderr:
                wrong.append(f"{file}: nobody misses {name}")
        print(f"{file}: {len(services)} services, {len(needed)} variables, each refused when it is missing")
    return wrong


def check_dockerfile():
    """The image tells the version of the workspace, and is built by the compiler that the workspace names."""
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    text = (ROOT / "docker/Dockerfile").read_text()
    wanted = [f'image.version="{workspace["version"]}"', f'FROM rust:{workspace["rust-version"]}-']
    return [f"docker/Dockerfile: no {each}" for each in wanted if each not in text]


def main(tools, trefoil):
    known = set(re.findall(r"\bTREFOIL_[A-Z_]+", output(trefoil, "serve", "--help")))
    wrong = check_dockerfile()
    wrong += check_kubernetes(f"{tools}/kubectl", known) + check_compose(f"{tools}/docker-compose", known)
    sys.exit("\n".join(wrong) or 0)


main(*sys.argv[1:])
