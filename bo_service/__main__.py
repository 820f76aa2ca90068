"""`python -m bo_service` is `bo`."""

from bo_service.cli import main

main()
