"""Import rules: imports run downwards only, and commands that answer at once import no torch (design 5)."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import paradit

PACKAGE = Path(paradit.__file__).parent

# Layers, lowest first. A module may import from its own line and the lines above; the longest prefix counts.
LAYERS = [
    ["version", "config.errors", "config.limits", "progress"],
    ["device_memory", "devices", "files", "waiting", "streams", "launcher_environment", "stopping", "logs"],
    ["trace"],
    ["attention_backends", "attention.patterns"],
    ["inputs"],
    ["config"],
    ["shapes"],
    [
        *("models.defaults", "models.vae_spec", "models.spec", "models.joint_spec", "models.registry"),
        *("models.lora", "models.find_lora"),
        *("models.umt5", "models.clip_vision", "models.transformer_spec"),
        *("models.wan.vae_spec", "models.wan.spec", "models.hunyuan_video.spec"),
        *("models.hub", "models.hub_errors", "models.folder", "models.folder_check", "models.folder_json"),
        *("models.identity", "models.known_schedulers", "models.flow_schedulers", "models.unknown_weights"),
        *("models.published", "models.checkpoint"),
        *("models.open_sora_plan.vae_spec", "models.open_sora_plan.spec"),
    ],
    ["config.steps", "config.requests", "config.request_inputs", "config.encoded_pictures"],
    ["scheduling"],
    ["distributed.shares"],
    ["config.methods.registry"],
    ["planner.hardware", "planner.costs", "planner.discrete_events", "planner.step"],
    ["distributed"],
    ["attention"],
    ["config.placement", "config.placement_text", "config.placement_checks"],
    ["config.methods", "models.warnings", "config.given_values"],
    ["provenance"],
    ["scheduling.rank_memory", "scheduling.balance"],
    ["scheduling.fitting"],
    ["planner"],
    ["models"],
    ["parallel"],
    ["sampling"],
    ["tuning"],
    ["video"],
    ["stages"],
    ["scheduler_check", "memory_check"],
    ["pipeline"],
    ["text_to_video"],
    ["engine"],
    ["testing"],
    ["cli", "server"],
    ["__main__"],
]  # fmt: skip
TORCH_FREE = [
    "attention.forms",
    "attention.patterns",
    "attention.registry",
    "attention.timing",
    "config",
    "files",
    "inputs",
    "attention_backends",
    "launcher_environment",
    "logs",
    "models.open_sora_plan.checkpoint",
    "models.warnings",
    "progress",
    "shapes",
    "stopping",
    "streams",
    "scheduling",
    "planner",
    "provenance",
    "scheduler_check",
    "trace",
    "video",
    "waiting",
    *LAYERS[2],
    *(
        "distributed.shares",
        "engine.events",
        "engine.job",
        "engine.reserve",
        "engine.run_folder",
        "engine.run_inputs",
        "engine.planned_placement",
        "engine.this_machine",
    ),
    "cli",
]
ONLY_IN = {
    "diffusers": ["models"],
    "fastapi": ["server"],
    "pydantic": ["server"],
    "typer": ["cli"],
    "av": ["inputs", "video"],
}


def modules() -> dict[str, Path]:
    """Return each module's file, by its dotted name below `paradit`."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def layer(name: str) -> int:
    matches = [(len(p), level) for level, line in enumerate(LAYERS) for p in line if covers(p, name)]
    assert matches, f"paradit.{name} has no layer: say in LAYERS where it stands"
    return max(matches)[1]


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, even inside functions."""
    found: set[str] = set()
    known = modules()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule.removeprefix("paradit.") in known else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("name", sorted(set(modules()) - {""}))
def test_imports_run_downwards(name: str) -> None:
    known = modules()
    for imported in imports(known[name]):
        target = imported.removeprefix("paradit.")
        if imported.startswith("paradit.") and target in known and target != "":
            assert layer(target) <= layer(name), (
                f"paradit.{name} imports paradit.{target}, which stands above it"
            )
        for library, places in ONLY_IN.items():
            if covers(library, imported):
                assert any(covers(place, name) for place in places), f"paradit.{name} imports {library}"


@pytest.mark.parametrize("name", sorted(n for n in modules() if any(covers(t, n) for t in TORCH_FREE)))
def test_torch_free_modules_import_no_torch(name: str) -> None:
    for imported in imports(modules()[name]):
        assert not any(covers(library, imported) for library in ("torch", "diffusers", "transformers")), (
            imported
        )


def test_there_are_no_circles() -> None:
    """Imports inside functions count too."""
    files = {f"paradit.{name}".rstrip("."): path for name, path in modules().items()}
    TopologicalSorter({name: imports(path) & files.keys() for name, path in files.items()}).prepare()


def test_nothing_is_imported_for_type_checking_alone() -> None:
    assert [name for name, path in modules().items() if "TYPE_CHECKING" in path.read_text()] == []


def test_the_public_names_have_types() -> None:
    """Type checkers find each public name in the module that the stub file names."""
    said = ast.parse((PACKAGE / "__init__.pyi").read_text()).body
    names = {
        alias.asname: node.module for node in said if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert sorted(filter(None, names)) == sorted(vars(paradit)["__all__"])
    for name, module in names.items():
        assert getattr(paradit, str(name)) is getattr(import_module(str(module)), str(name))


def test_collectives_stand_in_one_place() -> None:
    for name, path in modules().items():
        if not covers("distributed", name):
            assert not any(covers("torch.distributed", i) for i in imports(path)), name


def test_gpus_are_counted_in_one_place() -> None:
    counting = [name for name, path in modules().items() if "device_count" in path.read_text()]
    assert counting == ["devices"]


FORMS = "from paradit.attention.registry import FORMS; FORMS.all()"
FAMILIES = "from paradit.models.registry import FAMILIES; FAMILIES.all()"


@pytest.mark.parametrize(
    "statement",
    ["import paradit", "import paradit.cli.main", "import paradit.config.requests", FORMS, FAMILIES],
)
def test_start_is_quick(statement: str) -> None:
    heavy = {"torch", "diffusers", "transformers"}
    script = f"import sys; {statement}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
