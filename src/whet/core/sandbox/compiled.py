"""The code that a template is compiled to, with the calls that count in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame


class BoundedCode(CodeGenerator):
    """Compiles a template as Jinja does, with calls that count."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._branches: set[int] = set()
        self._terms: dict[int, int] = {}

    def blockvisit(self, nodes: Any, frame: Frame) -> None:
        """The body of a loop, a macro or a block begins with a count; a branch runs once for each of those."""
        if id(nodes) not in self._branches:
            self.writeline("environment.count()")
        super().blockvisit(nodes, frame)

    def visit_If(self, node: nodes.If, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        self._branches.update(id(body) for body in (node.body, node.else_, *(each.body for each in node.elif_)))
        super().visit_If(node, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        if node.test is not None:  # items that are passed over take steps too
            counted = nodes.EnvironmentAttribute("counted", lineno=node.lineno)
            node.test = nodes.And(counted, node.test, lineno=node.lineno).set_environment(self.environment)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        self.write("environment.join_as_text((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        if node.op not in ("in", "notin"):
            super().visit_Operand(node, frame)
            return
        self.write(f" {'in' if node.op == 'in' else 'not in'} environment.searched(")
        self.visit(node.expr, frame)
        self.write(")")

    def _counted(self, call: str, visit: Callable[[Any, Frame], None], node: Any, frame: Frame) -> None:
        self.write(f"environment.{call}(")
        visit(node, frame)
        self.write(")")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        """Of ``a + b + c + ...`` the sum is sized, and every eighth on the way to it."""
        term = self._terms.get(id(node), 0)
        if isinstance(node.left, nodes.Add):
            self._terms[id(node.left)] = term + 1
        if term % 8:
            super().visit_Add(node, frame)
        else:
            self._counted("sized", super().visit_Add, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        self._counted("sized", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        self._counted("sized", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        if node.ctx == "load":
            self._counted("sized", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)
