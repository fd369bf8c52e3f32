"""Command `paradit calibrate`: measure this machine, and write the results to a file.

Imports no torch until the options are checked.
"""

from __future__ import annotations

from datetime import date

from paradit import __version__
from paradit.cli.commands.calibrate_options import CalibrateOptions
from paradit.cli.reporters import make_reporter
from paradit.config.errors import InputError
from paradit.config.limits import MAX_RANKS, whole
from paradit.files import write_whole
from paradit.planner.calibration import KINDS, fit_device, machine_file, median_error
from paradit.planner.hardware import find_cluster
from paradit.planner.messages import crowded, fit_link, fit_neighbours
from paradit.video.writer import check_file


def calibrate(options: CalibrateOptions) -> None:
    """Measure this machine, fit the planner's cost model to the measurements, and write it to a file.

    Raises InputError. Nothing is written before everything is measured.
    """
    output, ranks = options.output, options.ranks
    if output.suffix != ".toml":
        raise InputError(f"output {str(output)!r} must end in .toml: use {str(output) + '.toml'!r}")
    # Checked before the machine is measured, which takes minutes.
    check_file("output", output, overwrite=options.overwrite)
    if ranks is not None:
        whole("ranks", ranks, most=MAX_RANKS)

    from paradit.devices import lack_gpus, num_gpus, visible_ranks
    from paradit.engine.machine import device_name
    from paradit.engine.microbenchmarks import calibrate as measure
    from paradit.engine.this_machine import keep_calibrated

    number = visible_ranks() if ranks is None else ranks
    if lack_gpus(number):
        raise InputError(f"ranks must be at most {num_gpus()} (this machine's GPUs), got {number}")
    with make_reporter(as_json=False) as report:
        found = measure(number, report)
    device = fit_device(found.measured, found.copies, f"paradit {__version__} calibrate, {date.today()}")
    device = crowded(device, found.messages)
    about = [
        f"{device_name()}, {number} {'rank' if number == 1 else 'ranks'}: measured by",
        f"`paradit calibrate --ranks {number}`, version {__version__}, {date.today()}.",
        "For `paradit plan --gpus FILE.toml`.",
    ]
    link = fit_link(found.messages, found.copies, number)
    own = fit_neighbours(found.messages)
    text = machine_file(device, link, number, found.measured, about, neighbours=own)
    write_whole(output, text.encode())
    find_cluster(str(output))  # raises if the file cannot be read
    keep_calibrated(text, number)
    print(output)
    for kind in KINDS:
        error = 100 * median_error(found.measured, device, kind)
        print(f"  {kind}: measurements differ from the formulas by {error:.1f} % (median)")
