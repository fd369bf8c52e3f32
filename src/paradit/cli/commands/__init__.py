"""What each command takes: its options, as typer reads them. Imports nothing else, so `--help` is quick."""
