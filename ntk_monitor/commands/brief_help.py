"""What ``--help`` says of the commands that LightningCLI reads: what one needs first."""

from __future__ import annotations

from argparse import ArgumentParser

HELP_ALL = "--help-all"
ABOUT = {
    "fit": "Train what a config describes, and print what gradient descent can and cannot learn.",
    "probe": "Measure the model of a config as it begins, or checkpoints of it, and print a table.",
}
OWN = {
    "fit": {"--ckpt_path FILE": "a checkpoint to go on from"},
    "probe": {
        "--ckpt FILE": "checkpoints to probe, also as a pattern, 'runs/*.ckpt'; by default none",
        "--output FOLDER": "where to save each snapshot, as .npz",
    },
}
SHARED = {
    "--seed_everything N": "seed of all random numbers",
    "--trainer.NAME VALUE": "an argument of Lightning's Trainer: --trainer.max_steps 1000",
    "--model.NAME VALUE": "an argument of the model",
    "--data.NAME VALUE": "an argument of the data",
    "--print_config": "print what would be used, and do nothing",
    HELP_ALL: "show all arguments there are",
}


def brief_help(command: str) -> str:
    """The help of ``fit`` or ``probe``, without importing what they run.

    Args:
        command: Which.

    Returns:
        Some lines.
    """
    parser = ArgumentParser(
        prog=f"ntk-monitor {command}",
        usage=f"ntk-monitor {command} --config FILE [ARGUMENT VALUE ...]",
        description=ABOUT[command],
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="YAML; of several, later ones overrule earlier ones"
    )
    for usage, does in {**OWN[command], **SHARED}.items():
        flag, *value = usage.split()
        if value:
            parser.add_argument(flag, metavar=value[0], help=does)
        else:
            parser.add_argument(flag, action="store_true", help=does)
    return parser.format_help()
