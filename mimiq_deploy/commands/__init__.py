"""One file a command; :mod:`mimiq_deploy.cli` imports a file when its command is called."""
