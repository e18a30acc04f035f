"""The type of import contract that import-linter lacks: `private` in .importlinter."""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class PrivateModulesContract(Contract):
    """Modules whose names begin with "_" are imported only within their distribution.

    The packages in `apart` count as distributions of their own.
    """

    type_name = "private"

    apart = fields.ListField(subfield=fields.StringField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        found = [
            (importer, imported)
            for imported in graph.modules
            if any(name.startswith("_") and not name.startswith("__") for name in imported.split("."))
            for importer in graph.find_modules_that_directly_import(imported)
            if self._distribution(importer) != self._distribution(imported)
        ]
        return ContractCheck(kept=not found, metadata={"imports": sorted(found)})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported in check.metadata["imports"]:
            output.print_error(f"{importer} imports {imported}, which is private to its distribution")

    def _distribution(self, module: str) -> str:
        packages = [package for package in self.apart or () if f"{module}.".startswith(f"{package}.")]
        return packages[0] if packages else module.partition(".")[0]
