"""Creation of checked jobs from the options of `paradit generate`. Loads no model, and makes no file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paradit.cli.commands.generate_options import GenerateOptions
from paradit.cli.prompts_file import Given, read_prompts_file
from paradit.config.errors import InputError
from paradit.config.limits import MAX_PROMPTS, shown, whole
from paradit.config.methods.method import resolve
from paradit.config.methods.registry import declared_options
from paradit.config.options import named as source
from paradit.config.placement import Placement
from paradit.config.requests import (
    Request,
    ResolvedRequest,
    asked_size,
    chosen_seed,
    frames_for,
    parse_duration,
)
from paradit.config.steps import parse_timesteps
from paradit.engine.job import Job
from paradit.files import name_words, named
from paradit.models.spec import ModelSpec
from paradit.video.writer import (
    check_file,
    check_folder_writable,
    check_target,
    video_format,
)

SLUG_LENGTH = 48


def make_jobs(
    options: GenerateOptions, prompts: list[Given], spec: ModelSpec, placement: Placement
) -> list[Job]:
    """Return a checked job for each prompt and seed. Raises InputError for the first that is not valid.

    prompts: what is given for each request, as `read_prompts` returns it. placement: the placement that the
    user asks for.
    """
    seed = chosen_seed(options.seed)
    requests = []
    for given in prompts:
        first = given.fields.get("seed", seed)
        with source(given.where):
            asked = [_request(options, given.fields, first + n, spec) for n in range(options.num_videos)]
            requests += [resolve(one, spec, placement) for one in asked]
    numbered = _is_numbered(options)
    digits = max(2, len(str(len(requests) - 1)))  # of one width, so that names sort by number
    jobs = []
    folder = output_folder(options)
    for index, request in enumerate(requests):
        number = f"{index:0{digits}d}" if numbered else ""
        output = _output(options, request, number)
        latents = _latents(options.latents, number)
        jobs.append(
            Job(
                request=request,
                output=output,
                latents=latents,
                crf=options.crf,
                make_folder=folder,
                index=index,
                count=len(requests),
            )
        )
    for job in jobs:
        _check_files(job, options, numbered)
        _check_endless(job)
    return jobs


def read_prompts(options: GenerateOptions) -> list[Given]:
    """Return what is given for each request that the options ask for, one or more. Raises InputError."""
    if options.prompts_file is None:
        whole("num_videos", options.num_videos, most=MAX_PROMPTS)
        if options.prompt is None:
            raise InputError("no prompt is given: give one, or a --prompts-file")
        return [Given(fields={"prompt": options.prompt})]
    if options.prompt is not None:
        raise InputError(f"give a prompt ({options.prompt!r}) or a --prompts-file, not both")
    prompts = read_prompts_file(options.prompts_file)
    whole("num_videos", options.num_videos, most=MAX_PROMPTS // len(prompts))  # that many videos in all
    return prompts


def output_folder(options: GenerateOptions) -> Path | None:
    """Return the folder that `--output` names for several videos; None if it names a file or is not given."""
    if not _is_numbered(options) or options.output is None or video_format(options.output):
        return None
    return Path(options.output)


def slug(prompt: str) -> str:
    """Return a file name made from a prompt: `A red circle, moving!` becomes `a-red-circle-moving`."""
    words = name_words(prompt)
    name = ""
    for word in words:
        if len(name) + 1 + len(word) > SLUG_LENGTH:
            break
        name = f"{name}-{word}" if name else word
    return name or (words[0][:SLUG_LENGTH] if words else "video")


def _request(options: GenerateOptions, fields: Mapping[str, Any], seed: int, spec: ModelSpec) -> Request:
    """Return a request of the options with some other fields, such as those on a line of a prompts file."""
    width, height = asked_size(options.size, options.width, options.height)
    own = {
        "negative_prompt": options.negative_prompt,
        "width": width,
        "height": height,
        "num_frames": frames_for(options.duration, options.num_frames, options.fps, spec),
        "trim": options.duration is not None and "num_frames" not in fields,
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": options.guidance_scale,
        "guidance_scale_2": options.guidance_scale_2,
        "preset": options.preset,
        "scheduler": options.scheduler,
        "shift": options.shift,
        "timesteps": parse_timesteps(options.timesteps),
        "expert_step": options.expert_step,
        "fps": options.fps,
        "dtype": options.dtype,
        "method": options.method,
        "prompts_at": tuple(_prompt_at(text) for text in options.prompt_at or ()),
        "vae_tile": options.vae_tile,
        "image": options.image,
        "last_image": options.last_image,
        "video": options.video,
        "strength": options.strength,
        "fit": options.fit,
    }
    of_methods = {name: options.others.get(name) for name in declared_options()}
    return Request.of(**{**own, **of_methods, **fields, "seed": seed})


def _prompt_at(text: str) -> tuple[float, str]:
    """Return the seconds and the prompt in a text like `20s a blue square`. Raises InputError."""
    time, _, prompt = text.strip().partition(" ")
    try:
        return parse_duration(time), prompt.strip()
    except InputError as error:
        raise InputError(
            f"prompt_at must be a time and a text, such as 20s 'a blue ring', got {shown(text)}: {error}"
        ) from None


def _is_numbered(options: GenerateOptions) -> bool:
    """Return whether output files get numbers in their names, because there may be several."""
    return options.prompts_file is not None or options.num_videos > 1


def _output(options: GenerateOptions, request: ResolvedRequest, number: str) -> str:
    output = options.output
    name = f"{slug(request.prompt)}-seed{request.seed}.mp4"
    if not number:
        return output if output is not None else name
    if options.prompts_file is not None:  # else the seed tells them apart
        name = f"{number}-{name}"
    if output is None:
        return name
    if not video_format(output):
        return str(Path(output) / name)
    return _with_number(Path(output), number)


def _latents(path: Path | None, number: str) -> Path | None:
    if path is None:
        return None
    if path.suffix != ".safetensors":
        raise InputError(
            f"latents {str(path)!r} must end in .safetensors: use {str(path) + '.safetensors'!r}"
        )
    return Path(_with_number(path, number)) if number else path


def _with_number(path: Path, number: str) -> str:
    return str(path.with_name(f"{path.stem}-{number}{path.suffix}"))


def _check_files(job: Job, options: GenerateOptions, numbered: bool) -> None:
    folder = output_folder(options) if numbered else None
    overwrite = options.overwrite or options.dry_run  # a dry run goes on, to show other mistakes
    if folder is not None and not folder.exists():
        check_folder_writable("output", folder.absolute().parent)  # it will be made there
    else:
        check_target(job.output, fps=job.request.fps, overwrite=overwrite, crf=job.crf)
    if job.latents is not None:
        check_file("latents", job.latents, overwrite=overwrite)
    part = job.growing
    if part is not None and named("output, while it grows,", part).exists() and not overwrite:
        raise InputError(
            f"output {job.output!r} is being written, or its run was killed: {str(part)!r} exists. Use "
            "paradit resume, name another file, or use --overwrite"
        )


def _check_endless(job: Job) -> None:
    """Refuse options that do not work for a video without a set length. Raises InputError."""
    if not job.request.endless:
        return
    if job.count > 1:
        raise InputError(
            "a video of duration inf never ends, so no other can follow: give one prompt, and one video"
        )
    if job.latents is not None:
        raise InputError("the latents of a video of duration inf would fill the memory: leave --latents out")
    if video_format(job.output) == ".gif":
        raise InputError(
            "a GIF is written when all its frames are there, never for duration inf: use .mp4 or .webm"
        )
