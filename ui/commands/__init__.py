"""The `kiseki` command, a module a subcommand.

What a command runs is imported inside its function. So `--help`, a wrong argument and completion wait for no kernel, database
or tokenizer; `tests/ui/test_cli.py` holds that. What a command prints stands in `ui.terminal`.
"""
