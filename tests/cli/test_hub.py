"""Models from a real hub on loopback, and from its cache: what is found, and the error of each failure."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import tiny
from hub_server import TOKEN, HubServer, serving
from lora_files import random_lora, saved
from messages import says
from paradit.models.folder import find_model
from paradit.models.spec import read_spec

PUBLISHED = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
NOWHERE = "http://127.0.0.1:1"
COMMAND = "from paradit.cli.main import main; main()"
# The hub's library reads its variables only when a process starts.
FIND = """
import json, sys
from paradit.config.errors import InputError
from paradit.models.folder import download_weights, find_model
from paradit.models.spec import read_spec
for name in sys.argv[1:]:
    try:
        folder = find_model(name)
        download_weights(name, folder)
        print(json.dumps({"folder": str(folder), "name": read_spec(folder).name}))
    except InputError as error:
        print(json.dumps(str(error)))
assert "torch" not in sys.modules
"""
FIND_THIS = """
import json, sys
from paradit.config.errors import InputError
from paradit.models.folder import download_weights, find_model
asked = json.loads(sys.argv[1])
try:
    folder = find_model("org/" + asked.pop("name"), **asked)
    download_weights("org/name", folder, asked.get("variant"))
    print(folder)
except InputError as error:
    print(error)
"""
FIND_LORAS = """
import json, sys
from pathlib import Path
from paradit.config.errors import InputError
from paradit.models.find_lora import download_loras, with_loras
from paradit.models.spec import read_spec
spec = read_spec(Path(sys.argv[1]))
for asked in sys.argv[2:]:
    try:
        print(json.dumps(download_loras(with_loras(spec, [asked])).loras[0].path))
    except InputError as error:
        print(json.dumps(str(error)))
assert "torch" not in sys.modules
"""
DIFFUSERS = """
import sys
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained("org/name")
DiffusionPipeline.from_pretrained("org/both", variant="fp16")
print("downloaded", flush=True)
input()
from paradit.cli.main import main
main()
"""
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the hub's models by keyword: a whole one, and models that are special in one way."""
    place = tmp_path_factory.mktemp("models")
    made = {"name": tiny.save_folder("wan21", place / "name", width=64, height=32, num_frames=5)}
    for name in ("sharded", "both", "variant", "i2v", "original", "gated"):
        made[name] = shutil.copytree(made["name"], place / name)
    whole = tiny.transformer()
    for path in (made["sharded"] / "transformer").glob("*.safetensors"):
        path.unlink()
    whole.save_pretrained(made["sharded"] / "transformer", max_shard_size="200KB")
    for name in ("both", "variant"):
        whole.to(torch.float16).save_pretrained(made[name] / "transformer", variant="fp16")
    (made["variant"] / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    index = made["i2v"] / "model_index.json"
    index.write_text(
        json.dumps(json.loads(index.read_text()) | {"_class_name": "HunyuanVideoImageToVideoPipeline"})
    )
    (made["original"] / "model_index.json").unlink()
    return made


@pytest.fixture
def hub(models: dict[str, Path]) -> Iterator[HubServer]:
    with serving(**models) as hub:
        yield hub


def environment(hub: HubServer, home: Path, **variables: Any) -> dict[str, str]:
    """Return the environment of a process that uses this hub, without any of the user's hub settings."""
    names = ("HF_", "HUGGING", "TRANSFORMERS_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    env |= {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**env, "NO_PROXY": "", **variables}


def run(
    script: str,
    arguments: list[str],
    hub: HubServer,
    home: Path,
    prepare: Callable[[], None] | None = None,
    **variables: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process, in the folder that holds the hub's home."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=home.parent,
        env=environment(hub, home, **variables),
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def found(hub: HubServer, home: Path, *names: str, **variables: Any) -> list[dict[str, str] | str]:
    """Download each model's weights; return its folder and name, or the error."""
    done = run(FIND, [*names], hub, home, **variables)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def refusal(hub: HubServer, home: Path, *names: str, **variables: Any) -> str:
    """Return the errors of all these models, one line each."""
    said = found(hub, home, *names, **variables)
    assert all(isinstance(line, str) and "\n" not in line for line in said), said
    return "\n".join(map(str, said))


def snapshot(home: Path, name: str) -> Path:
    """Return the only folder of a model in the cache."""
    (folder,) = (home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots").iterdir()
    return folder


def test_downloaded_once_a_model_is_found_without_the_hub(hub: HubServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    names = ["org/name", "org/sharded", "org/variant"]
    first = found(hub, home, *names)
    assert [told["name"] for told in first if isinstance(told, dict)] == names
    assert first[0]["folder"] == str(snapshot(home, "org/name"))  # type: ignore[index]
    assert found(hub, home, *names, HF_ENDPOINT=NOWHERE) == first
    hub.asked.clear()
    assert found(hub, home, *names, HF_HUB_OFFLINE="1") == first
    assert not hub.asked
    hub.status = 500
    assert found(hub, home, *names) == first
    hub.status = 200
    assert found(hub, home, *names, HF_TOKEN="expired") == first
    assert found(hub, home, *names, HF_TOKEN=TOKEN) == first
    assert not [asked for asked in hub.asked if asked.endswith("safetensors")]


def test_a_hub_that_says_nothing_is_waited_for_once(hub: HubServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = found(hub, home, "org/name")
    hub.hangs = True
    hub.asked.clear()
    sooner = "from paradit.models import hub; hub.TIMEOUT = 0.5"
    told = run(sooner + FIND, ["org/name"], hub, home)
    assert [json.loads(told.stdout)] == first
    assert len(hub.asked) == 1


def test_only_the_weights_that_are_loaded_are_downloaded(hub: HubServer, tmp_path: Path) -> None:
    found(hub, tmp_path / "home", "org/both")
    weights = [path.name for path in snapshot(tmp_path / "home", "org/both").rglob("*.safetensors")]
    assert sorted(weights) == ["diffusion_pytorch_model.safetensors"] * 2 + ["model.safetensors"]


def test_what_diffusers_has_downloaded(hub: HubServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    sizes = ["--size", "64x32", "--num-frames", "5", "--num-inference-steps", "1"]
    arguments = ["generate", "a", "--model", "org/name", *sizes, "--latents", "l.safetensors", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", DIFFUSERS, *arguments],
        cwd=tmp_path,
        env=environment(hub, home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "downloaded\n"
    hub.status = 500
    told = [json.loads(line) for line in process.communicate("\n", timeout=120)[0].splitlines()]
    assert process.returncode == 0
    assert [about["model"] for about in told if about["event"] == "result"] == ["org/name"]
    with safe_open(tmp_path / "l.safetensors", "np") as latents:
        assert latents.metadata()["model"] == "org/name"

    (both,) = found(hub, home, "org/both", HF_HUB_OFFLINE="1")
    hub.status = 200
    assert found(hub, home, "org/both") == [both]  # with the weights that are present
    assert both == {"folder": str(snapshot(home, "org/both")), "name": "org/both"}
    (weights,) = (snapshot(home, "org/both") / "transformer").glob("*.safetensors")
    assert weights.name == "diffusion_pytorch_model.fp16.safetensors"


def test_half_a_download_without_the_hub_says_what_is_missing(hub: HubServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    arguments = ["generate", "a", "--model", "org/name", "--dry-run"]
    planned = run(COMMAND, arguments, hub, home)
    assert "model:   org/name " in planned.stdout  # only the small files are present now
    assert run(COMMAND, arguments, hub, home, HF_HUB_OFFLINE="1").stdout == planned.stdout
    said = refusal(hub, home, "org/name", HF_HUB_OFFLINE="1")
    assert says(said, "'org/name' .. text_encoder/model.safetensors is missing .. unset it")
    assert "HF_HUB_OFFLINE is set" in said
    found(hub, home, "org/sharded")
    shards = sorted((snapshot(home, "org/sharded") / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    hub.status = 503
    said = refusal(hub, home, "org/sharded")
    assert says(said, f"transformer/{shards[1].name} is missing .. 503: try again")


def test_an_older_whole_revision_serves_where_the_newest_is_not_whole(
    hub: HubServer, models: dict[str, Path], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    first = found(hub, home, "org/name")
    hub.models["org/name"] = shutil.copytree(models["name"], tmp_path / "newer")
    (tmp_path / "newer" / "README.txt").write_text("new")
    run(COMMAND, ["generate", "a", "--model", "org/name", "--dry-run"], hub, home)
    assert len(list((home / "hub" / "models--org--name" / "snapshots").iterdir())) == 2
    assert found(hub, home, "org/name", HF_HUB_OFFLINE="1") == first
    newer = found(hub, home, "org/name")
    assert newer != first
    assert found(hub, home, "org/name", HF_HUB_OFFLINE="1") == newer


def test_ids_that_cannot_be(hub: HubServer, models: dict[str, Path], tmp_path: Path) -> None:
    hub.models |= {"org/original-Diffusers": models["name"], "Wan-AI/Wan2.1-T2V-1.3B": models["original"]}
    hub.models["tencent/HunyuanVideo"] = models["original"]
    hub.gated.add("org/gated")
    cases = {
        "org/nme": "there is no such model on the hub, or it is private: then log in with 'hf auth login'",
        "Wan-AI/Wan2.1-T2V-14B-Difusers": f"(did you mean {PUBLISHED!r}?)",
        "org/gated": f"it is gated: ask for access on {hub.url}/org/gated, and log in",
        "org/i2v": "videos from an image (HunyuanVideoImageToVideoPipeline), which is not supported yet",
        "org/original": "not in diffusers' format: model_index.json is missing: use 'org/original-Diffusers'",
        "Wan-AI/Wan2.1-T2V-1.3B": "use 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'",
        "tencent/HunyuanVideo": "use 'hunyuanvideo-community/HunyuanVideo'",
        "https://huggingface.co/org/name/tree/main": "its hub id is 'org/name'",
    }
    said = refusal(hub, tmp_path / "home", *cases).splitlines()
    for line, words in zip(said, cases.values(), strict=True):
        assert words in line
    assert not [asked for asked in hub.asked if "safetensors" in asked]
    said = [refusal(hub, tmp_path / "home", "Wan-AI/Wan2.1-T2V-1.3B", HF_HUB_OFFLINE="1")]
    assert "did you mean 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'?" in said[0]


@pytest.mark.parametrize(
    ("variables", "says"),
    [  # HUB stands for its address
        ({"HF_ENDPOINT": NOWHERE}, r"\(http://127.0.0.1:1\) cannot be reached \(.*refused\)"),
        ({"HF_TOKEN": "expired"}, "token in HF_TOKEN: replace or remove it"),
        ({"HF_TOKEN": "hf_ä"}, "the token in HF_TOKEN, .* is not valid"),
        ({"HF_ENDPOINT": "huggingface.co"}, "wrong address .*: set HF_ENDPOINT .* https:"),
        ({"HF_ENDPOINT": "https://HUB"}, "cannot be reached securely ..SSL.*SSL_CERT_FILE"),
        ({"HTTP_PROXY": "http://me:secret@127.0.0.1:1"}, r"by the proxy 127.0.0.1:1\) cannot be reached"),
        ({"HF_ENDPOINT": "https://a.invalid", "HTTPS_PROXY": "http://HUB"}, "proxy refuses .407.*_PROXY"),
        ({"HF_HOME": "file"}, "'.*file/hub' .*Not a directory.*: set HF_HOME"),
        ({"TRANSFORMERS_OFFLINE": "1"}, "TRANSFORMERS_OFFLINE is set"),
    ],
)  # fmt: skip
def test_a_hub_that_cannot_be_asked_is_one_line(
    hub: HubServer, tmp_path: Path, variables: dict[str, str], says: str
) -> None:
    (tmp_path / "file").touch()
    address = hub.url.removeprefix("http://")
    variables = {name: value.replace("HUB", address) for name, value in variables.items()}
    said = refusal(hub, tmp_path / "home", "org/name", **variables)
    assert re.search(says, said), said
    assert "secret" not in said


def test_answers_that_are_none(hub: HubServer, tmp_path: Path) -> None:
    hub.no_hub = True
    assert "does not answer as a hub: check HF_ENDPOINT" in refusal(hub, tmp_path / "home", "org/name")
    hub.no_hub = False
    for status, remedy in {429: "try again in a few minutes", 403: "whether the token may read"}.items():
        hub.status = status
        assert re.search(f"status {status}.*{remedy}", refusal(hub, tmp_path / "home", "org/name"))


def test_weights_that_there_is_no_room_for(hub: HubServer, tmp_path: Path) -> None:
    """The write itself fails, as on a full disk; here by a limit on a file's length."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    said = json.loads(run(FIND, ["org/name"], hub, tmp_path / "home", prepare=limited).stdout)
    assert says(said, "weights of model 'org/name' .. cache .. make room, or set HF_HOME")
    assert found(hub, tmp_path / "home", "org/name")[0]["name"] == "org/name"  # type: ignore[index]


def test_a_published_model_is_planned_without_any_network(hub: HubServer, tmp_path: Path) -> None:
    def planned(model: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        arguments = ["generate", "a", "--model", model, "--dry-run", "--json"]
        return run(COMMAND, arguments, hub, tmp_path / "home", **variables)

    plan = json.loads(planned(PUBLISHED).stdout)
    assert (plan["model"], plan["width"], plan["num_frames"]) == (PUBLISHED, 832, 81)
    assert plan["tokens"] == 32760
    assert not hub.asked
    assert not (tmp_path / "home").exists()
    said, plan = map(
        json.loads, planned("LanguageBind/Open-Sora-Plan-v1.3.0", HF_HUB_OFFLINE="1").stdout.splitlines()
    )
    assert says(said["message"], "to run .. download its checkpoint .. `paradit convert`")
    assert (plan["width"], plan["num_frames"], plan["tokens"]) == (640, 93, 24 * 22 * 40)

    # The cache takes precedence over the published configuration.
    hub.models[PUBLISHED] = hub.models["org/name"]
    found(hub, tmp_path / "home", PUBLISHED)
    hub.asked.clear()
    plan = json.loads(planned(PUBLISHED).stdout)
    assert (plan["model"], plan["width"], plan["num_frames"]) == (PUBLISHED, 64, 5)
    assert not hub.asked


def test_a_snapshot_is_called_by_its_hub_id(models: dict[str, Path], tmp_path: Path) -> None:
    stored = tmp_path / "models--org--a-name" / "snapshots" / ("0" * 40)
    shutil.copytree(models["name"], stored)
    (tmp_path / "link").symlink_to(stored)
    for folder in (stored, tmp_path / "link"):
        assert read_spec(find_model(str(folder))).name == "org/a-name"
    (stored / "paradit.json").write_text('{"name": "its own"}')
    assert read_spec(stored).name == "its own"


def test_latents_that_name_a_hub_model_by_its_revision(models: dict[str, Path], tmp_path: Path) -> None:
    stored = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    shutil.copytree(models["name"], stored)
    (tmp_path / "there.mp4").touch()
    arguments = ["decode", "l.safetensors", "--model", str(stored), "-o", "there.mp4"]
    for model, wanted in (
        ("0" * 40, "'there.mp4' exists"),
        ("1" * 40, f"made by the model '{'1' * 40}', not"),
    ):
        zeros = np.zeros((1, 16, 2, 4, 8), np.float32)
        save_file({"latents": zeros}, tmp_path / "l.safetensors", {"model": model, "prompt": "a"})
        ended = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 2
        assert wanted in ended.stderr


def test_a_revision_that_is_asked_for(hub: HubServer, models: dict[str, Path], tmp_path: Path) -> None:
    home = tmp_path / "home"
    hub.models["org/name@old"] = shutil.copytree(models["name"], tmp_path / "old")
    (tmp_path / "old" / "paradit.json").write_text('{"width": 96}')

    def told(revision: str | None, **variables: Any) -> str:
        asked = json.dumps({"name": "name", "revision": revision})
        return run(FIND_THIS, [asked], hub, home, **variables).stdout.strip()

    old = told("old")
    assert read_spec(Path(old)).defaults.width == 96
    assert Path(old).name == hub.commit("org/name@old")
    assert told(Path(old).name) == told(Path(old).name[:8]) == old
    newest = told(None)
    assert read_spec(Path(newest)).defaults.width == 64
    assert says(told("none"), "model 'org/name' .. no such revision")
    for revision, folder in {"old": old, None: newest, "main": newest}.items():
        assert told(revision, HF_HUB_OFFLINE="1") == folder


def test_a_variant_that_is_asked_for(hub: HubServer, tmp_path: Path) -> None:
    def told(name: str, variant: str) -> str:
        asked = json.dumps({"name": name, "variant": variant})
        return run(
            FIND_THIS.replace("org/name", f"org/{name}"), [asked], hub, tmp_path / "home"
        ).stdout.strip()

    folder = Path(told("both", "fp16"))
    assert [path.name for path in (folder / "transformer").glob("*.safetensors")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]
    assert says(told("both", "bf16"), "model 'org/both' .. variant 'bf16': leave it out")


def test_loras_on_the_hub(hub: HubServer, models: dict[str, Path], tmp_path: Path) -> None:
    """A plan reads their headers only. They are downloaded once, and used without the hub."""
    folder, older = tmp_path / "loras" / "high noise", tmp_path / "older" / "high noise"
    for place, heads in ((folder, 2), (older, 4)):
        place.mkdir(parents=True)
        saved(random_lora(tiny.transformer(heads=heads)), place / "a.safetensors")
    (folder / "text.safetensors").write_text("a text" * 10_000)
    for name in ("loras", "loras@a/b", "loras@refs/pr/3"):
        hub.models[f"org/{name}"] = folder.parent
    hub.models["org/loras@v1"] = older.parent
    home, model, inside = tmp_path / "home", str(models["name"]), "/high noise/a.safetensors"
    file = f"org/loras{inside}"

    def planned(command: list[str], *loras: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        words = [word for lora in loras for word in ("--lora", lora)]
        return run(COMMAND, [*command, "--model", model, "--json", *words], hub, home, **variables)

    def found(*loras: str, **variables: Any) -> list[str]:
        done = run(FIND_LORAS, [model, *loras], hub, home, **variables)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    dry, loras = ["generate", "a red circle", "--dry-run"], [f"{file}=0.5", f"org/loras@refs/pr/3{inside}"]
    done = planned(dry, *loras)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["loras"] == loras
    assert planned(["plan", "--gpus", "1xH100"], file).returncode == 0
    assert not list(home.rglob("*.safetensors"))

    paths = found(file, f"{file}=0.5", f"org/loras@a%2Fb{inside}")
    assert paths == [paths[0]] * 3
    assert Path(paths[0]).read_bytes() == (folder / "a.safetensors").read_bytes()
    hub.asked.clear()
    assert planned(dry, file).returncode == 0
    assert hub.asked == [f"HEAD /org/loras/resolve/main{inside}"]
    assert found(file, "org/loras/b.safetensors", HF_HUB_OFFLINE="1")[0] == paths[0]

    cases = {
        "org/loras/b.safetensors": "cannot be downloaded: it has no such file: see .. org/loras/tree/main",
        "org/nothing/a.safetensors": "cannot be downloaded: there is no such model on the hub",
        "org/loras/high noise": "must name a safetensors file on the hub: org/loras/FILE.safetensors",
        "org/loras/a.bin": "is not a safetensors file: convert it",
        "org/loras/high noise/text.safetensors": "is not a safetensors file: convert it",
        "org/loras": "give a safetensors file, or org/name/FILE.safetensors on the hub",
        f"org/loras@v1{inside}": "is for another model: it has layers that are 128 channels wide",
        f"org/loras@v2{inside}": "cannot be downloaded: it has no such revision",
        f"org/loras@{inside}": "revision '' is not a valid name of a revision",
        f"org/loras@low{inside}": f"would be a revision: an expert comes last ('{file}@low')",
        f"{file}@v1": f"high or low, got 'v1' (a revision comes after the id: 'org/loras@v1{inside}')",
    }
    for said, wanted in zip(found(*cases), cases.values(), strict=True):
        assert says(said, wanted), said
        assert "\n" not in said
    refused = planned(dry, "org/nothing/a.safetensors", HF_HUB_OFFLINE="1")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert says(refused.stderr, "HF_HUB_OFFLINE is set")
