"""Train the bundled model from nothing: VAE, then text encoder and transformer, then the decoder once more.

    python training/shapes/train.py                                        # on a GPU
    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 training/shapes/train.py --batch 8    # on two CPU cores

The training is seeded. It can be stopped at any moment: the same command resumes it from the last checkpoint,
which is at most four minutes old. Its length is given in minutes, and learning rates fall over that time.
Under torchrun every rank draws its own batch, and gradients are averaged. On a CPU, one process per core with
one thread each is somewhat faster than one process with all threads, because the operations are small.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import torch.distributed as dist
import transformer
import vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="checkpoints and results")
    parser.add_argument("--vae-minutes", type=float, default=44)
    parser.add_argument("--transformer-minutes", type=float, default=90)
    parser.add_argument("--decoder-minutes", type=float, default=15, help="of the decoder alone, at the end")
    parser.add_argument("--batch", type=int, default=32, help="33-frame videos in a rank's batch")
    parser.add_argument("--init", type=Path, help="pipeline folder to start from, such as the shipped one; "
                        "with --vae-minutes 0 its VAE is kept")  # fmt: skip
    args = parser.parse_args()

    # torchrun sets it.
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    num_clips = max(1, args.batch // 2)
    vae_folder = args.folder / "vae" / "vae"
    if args.init and not args.vae_minutes:
        vae_folder = args.init / "vae"
    else:
        vae.train(args.folder / "vae", args.vae_minutes, num_clips, init=args.init)
        if dist.is_initialized():
            dist.barrier()  # the others wait for the file
    transformer.train(
        args.folder / "transformer", vae_folder, args.transformer_minutes, args.batch, init=args.init
    )
    if args.decoder_minutes:
        vae.refine_decoder(args.folder / "decoder", vae_folder, args.decoder_minutes, num_clips)
        if not dist.is_initialized() or dist.get_rank() == 0:
            pipeline = args.folder / "transformer" / "pipeline"
            shutil.copytree(args.folder / "decoder" / "vae", pipeline / "vae", dirs_exist_ok=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
