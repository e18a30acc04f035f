"""The type of import contract that import-linter lacks: `private` in .importlinter."""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output


class PrivateModulesContract(Contract):
    """Modules whose names begin with "_" are imported only within their distribution."""

    type_name = "private"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        found = [
            (importer, imported)
            for imported in graph.modules
            if any(name.startswith("_") and not name.startswith("__") for name in imported.split("."))
            for importer in graph.find_modules_that_directly_import(imported)
            if importer.partition(".")[0] != imported.partition(".")[0]
        ]
        return ContractCheck(kept=not found, metadata={"imports": sorted(found)})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported in check.metadata["imports"]:
            output.print_error(f"{importer} imports {imported}, which is private to its distribution")
