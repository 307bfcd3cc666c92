"""``python -m mimiq_deploy`` is ``mimiq-deploy``."""

from mimiq_deploy.cli import main

if __name__ == "__main__":
    main()
