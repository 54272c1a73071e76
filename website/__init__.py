"""The documentation site: `mkdocs build --strict` (extra `docs`). Its generated pages are made as it is built."""
