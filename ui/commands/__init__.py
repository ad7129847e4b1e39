"""The `kiseki` command, a module a subcommand."""
