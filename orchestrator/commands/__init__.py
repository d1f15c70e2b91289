"""The commands of `loadproof`, one file each; `orchestrator.cli` gathers them."""
