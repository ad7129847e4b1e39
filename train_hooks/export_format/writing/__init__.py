"""Writing an export: runs, attempts and the files of a writer rank."""
