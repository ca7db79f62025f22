"""Judges Python source by its syntax tree, without running it: which dotted names it refers to, and when.

It follows imports, plain assignments, and names spelled as constant text. It is a net for what is written plainly and
for the first tricks, not a proof: code that wants to hide can.
"""

import ast
import tokenize
import warnings
from collections.abc import Iterator

from imgcls.archive.scanning.findings import Finding
from imgcls.archive.scanning.rules import find
from imgcls.archive.scanning.source_rules import (
    COMPUTED_IMPORT,
    HIDDEN,
    HIDDEN_ATTRIBUTES,
    MAX_SOURCE_BYTES,
    SOURCE_RULES,
    UNPICKLES,
    WATCHED_MODULES,
    SourceRule,
)
from imgcls.archive.syntax import parse_python

_IMPORTERS = {"__import__", "builtins.__import__", "importlib.import_module", "importlib.__import__"}
_NAMESPACES = ("sys.modules", "globals")
_GETTERS = {"get", "pop", "setdefault", "__getitem__"}  # of a namespace's dictionary
_BUILTINS = {
    "hasattr",
    "eval",
    "exec",
    "compile",
    "execfile",
    "breakpoint",
    "getattr",
    "vars",
    "locals",
    "globals",
    "__import__",
    "__builtins__",
}


def check_source(path: str, source: bytes) -> Iterator[Finding]:
    """Judges one Python file."""
    if len(source) > MAX_SOURCE_BYTES:
        yield find("source-unreadable", path, f"{len(source):,} bytes")
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a parser's advice about the code's escapes
            tree = parse_python(source)
        visitor = _Visitor(path)
        visitor.learn_names(tree)
        visitor.visit(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError, LookupError, tokenize.TokenError) as err:
        yield find("source-unreadable", path, " ".join(str(err).split())[:200] or type(err).__name__)
        return
    yield from visitor.findings


class _Visitor(ast.NodeVisitor):
    """Collects findings; `names` says what each name of the file can stand for, wherever it is bound."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.findings: list[Finding] = []
        self.names: dict[str, set[str]] = {}
        self.members: dict[str, set[str]] = {}  # attributes that imports in a class bind
        self.scope: list[str] = []
        self.functions = 0  # how many of the scopes are functions, whose bodies do not run at import
        self.has_star = False

    def learn_names(self, tree: ast.AST) -> None:
        """Learns what imports and assignments bind; assignments twice, as one may stand on another."""
        nodes = list(ast.walk(tree))
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._bind(alias.asname or alias.name.partition(".")[0], alias.name if alias.asname else "")
            elif isinstance(node, ast.ImportFrom):
                self.has_star |= any(alias.name == "*" for alias in node.names)
                for alias in node.names:
                    self._bind(alias.asname or alias.name, _name_import(node, alias.name))
            elif isinstance(node, ast.ClassDef):
                bound = {alias.asname or alias.name.partition(".")[0] for alias in _list_class_imports(node)}
                self.members |= {name: self.names.setdefault(name, set()) for name in bound}
        for node in nodes + nodes:
            if isinstance(node, ast.Assign | ast.NamedExpr | ast.AnnAssign) and node.value:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        for dotted in self.resolve(node.value):
                            self._bind(target.id, dotted)

    def resolve(self, node: ast.AST) -> set[str]:
        """Returns the dotted names that an expression can stand for."""
        if isinstance(node, ast.Name):
            unbound = {node.id} if self.has_star or node.id in _BUILTINS else set()
            return self.names.get(node.id, unbound)
        if isinstance(node, ast.Attribute):
            bases = self.resolve(node.value)
            return {f"{base}.{node.attr}" for base in bases} or self.members.get(node.attr, set())
        if isinstance(node, ast.NamedExpr):
            return self.resolve(node.value)
        if isinstance(node, ast.Subscript):  # sys.modules["os"], vars(os)["system"], os.__dict__["system"]
            return {_look_up(base, read_text(node.slice)) for base in self.resolve(node.value)} - {""}
        if isinstance(node, ast.Call):
            return self._resolve_call(node)
        return set()

    def _resolve_call(self, node: ast.Call) -> set[str]:
        callees, text = self.resolve(node.func), [read_text(argument) for argument in node.args[:2]]
        if callees & _IMPORTERS and text and text[0]:
            is_root = callees & {"__import__", "builtins.__import__"}
            return {text[0].partition(".")[0] if is_root else text[0]}
        if callees & {"getattr", "builtins.getattr"} and len(text) == 2 and text[1]:
            return {f"{base}.{text[1]}" for base in self.resolve(node.args[0])}
        if callees & {"globals", "builtins.globals", "locals", "builtins.locals"}:
            return {"globals"}
        if callees & {"vars", "builtins.vars"}:
            return {f"{base}.__dict__" for base in self.resolve(node.args[0])} if node.args else {"globals"}
        if text and isinstance(node.func, ast.Attribute) and node.func.attr in _GETTERS:
            return {_look_up(base, text[0]) for base in self.resolve(node.func.value)} - {""}
        return set()

    def _bind(self, name: str, dotted: str) -> None:
        known = self.names.setdefault(name, set())
        if len(known) < 8:  # more is no honest code, and the sets multiply
            known.add(dotted or name)

    # What the tree's nodes are judged for.

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._judge(node)
            if node.id == "__builtins__":
                self._report(HIDDEN, node, "__builtins__")
            for dotted in self.resolve(node) & WATCHED_MODULES:
                self._report(HIDDEN, node, f"the module {dotted} as a value")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        is_by_name = node.attr == "__getattribute__" and self.resolve(node.value) & WATCHED_MODULES
        if node.attr in HIDDEN_ATTRIBUTES or is_by_name:
            self._report(HIDDEN, node, node.attr)
        if not self._judge(node):
            self._visit_base(node.value)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        bases = self.resolve(node.value)
        if read_text(node.slice) is None and any(map(_is_namespace, bases)):
            self._report(HIDDEN, node, f"{min(bases)} by a computed name")
        if not self._judge(node):
            self.visit(node.value)
        self.visit(node.slice)

    def visit_Call(self, node: ast.Call) -> None:
        callees, arguments = self.resolve(node.func), node.args
        if callees & _IMPORTERS and arguments and read_text(arguments[0]) is None:
            self._report(COMPUTED_IMPORT, node, "an import of a computed name")
        if callees & {"getattr", "builtins.getattr"} and len(arguments) > 1:
            self._judge_getattr(node)
            arguments = arguments[1:]
        elif callees & {"vars", "builtins.vars", "hasattr"}:
            arguments = arguments[1:]
        elif callees & {"operator.attrgetter", "operator.methodcaller"}:
            for argument in arguments:
                self._match(node, {read_text(argument) or ""})
        elif arguments and isinstance(node.func, ast.Attribute) and node.func.attr in _GETTERS:
            bases = self.resolve(node.func.value)
            if read_text(arguments[0]) is None and any(map(_is_namespace, bases)):
                self._report(HIDDEN, node, f"{min(bases)} by a computed name")
        self._judge_load(node, callees)
        self._judge(node)
        self.visit(node.func)
        for child in (*arguments, *node.keywords):
            self.visit(child)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*" and (node.module or "").partition(".")[0] in WATCHED_MODULES:
                self._report(HIDDEN, node, f"everything of {node.module}")
            self._match(node, {_name_import(node, alias.name)})

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for outer in (*node.decorator_list, node.args):
            self.visit(outer)
        self._visit_body(node.body, name=node.name, is_function=True)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        self._visit_body([node.body], name="a lambda", is_function=True)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for outer in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(outer)
        self._visit_body(node.body, name=node.name, is_function=False)

    def _visit_body(self, body: list[ast.stmt] | list[ast.expr], *, name: str, is_function: bool) -> None:
        self.scope.append(name)
        self.functions += is_function
        for child in body:
            self.visit(child)
        self.functions -= is_function
        self.scope.pop()

    def _visit_base(self, node: ast.AST) -> None:
        """Visits what stands before a dot, where a module is in its place."""
        if isinstance(node, ast.Name):
            if node.id == "__builtins__":
                self._report(HIDDEN, node, "__builtins__")
        else:
            self.visit(node)

    def _judge_getattr(self, node: ast.Call) -> None:
        target, name = node.args[:2]
        bases = {base for base in self.resolve(target) if base.partition(".")[0] in WATCHED_MODULES}
        if bases and not isinstance(name, ast.Constant):
            self._report(HIDDEN, node, f"getattr of {min(bases)} by a computed name")
        elif not isinstance(target, ast.Name):
            self.visit(target)

    def _judge_load(self, node: ast.Call, callees: set[str]) -> None:
        values = {keyword.arg: keyword.value for keyword in node.keywords}
        if "torch.load" in callees and not _is_constant(values.get("weights_only"), True):
            self._report(UNPICKLES, node, "torch.load without weights_only=True")
        if "numpy.load" in callees and not _is_constant(values.get("allow_pickle", ast.Constant(False)), False):
            self._report(UNPICKLES, node, "numpy.load with allow_pickle")
        if callees & {"yaml.load", "yaml.load_all"} and "Safe" not in ast.dump(node):
            self._report(UNPICKLES, node, "yaml.load without a safe loader")

    def _judge(self, node: ast.AST) -> bool:
        """Reports the rules that an expression meets; tells whether there was one."""
        return self._match(node, self.resolve(node))

    def _match(self, node: ast.AST, dotted_names: set[str]) -> bool:
        is_met = False
        for dotted in sorted(dotted_names):
            for rule in SOURCE_RULES:
                if any(rule.matches(suffix) for suffix in _suffixes(dotted)):
                    self._report(rule, node, dotted)
                    is_met = True
        return is_met

    def _report(self, rule: SourceRule, node: ast.AST, what: str) -> None:
        is_import = self.functions == 0
        severity = rule.at_import if is_import else rule.severity
        if severity is None:
            return
        where = "when it is imported" if is_import else "in " + ".".join(self.scope)
        message = f"line {getattr(node, 'lineno', 0)}, {where}: {what}: {rule.why}"
        self.findings.append(Finding(rule.name, severity, self.path, message))


def read_text(node: ast.AST) -> str | None:
    """Returns the text that an expression is, where it is made of constants; None where it has to be run."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return node.value if isinstance(node.value, str) else node.value.decode("latin-1")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = read_text(node.left), read_text(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.JoinedStr | ast.List | ast.Tuple):
        parts = [read_text(part) for part in (node.values if isinstance(node, ast.JoinedStr) else node.elts)]
        return None if None in parts else "".join(filter(None, parts))
    if isinstance(node, ast.FormattedValue):
        return read_text(node.value)
    if isinstance(node, ast.Subscript) and ast.unparse(node.slice) == "::-1":
        text = read_text(node.value)
        return None if text is None else text[::-1]
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "''.join" and node.args:
        return read_text(node.args[0])
    return None


def _look_up(base: str, key: str | None) -> str:
    """Returns what a subscript of a namespace stands for; nothing where it is no namespace."""
    if key is None:
        return ""
    if base in _NAMESPACES:
        return key
    return f"{base.removesuffix('.__dict__').strip('_')}.{key}" if _is_dict(base) else ""


def _name_import(node: ast.ImportFrom, name: str) -> str:
    """Returns the dotted name that `from … import name` binds; a relative module's is like no other's."""
    return f"<here>{node.module or ''}.{name}" if node.level else f"{node.module}.{name}"


def _list_class_imports(node: ast.ClassDef) -> Iterator[ast.alias]:
    """Yields what a class imports for itself: its body with all that stands in it, but functions and classes."""
    waiting: list[ast.AST] = [*node.body]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, ast.Import | ast.ImportFrom):
            yield from inner.names
        elif not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(inner)


def _is_dict(base: str) -> bool:
    return base.endswith(".__dict__") or base == "__builtins__"


def _is_namespace(base: str) -> bool:
    return base in _NAMESPACES or _is_dict(base)


def _is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _suffixes(dotted: str) -> Iterator[str]:
    """Yields a name, and the name as it would be without the modules it was reached through; a builtin only whole."""
    yield dotted
    parts = dotted.split(".")
    yield from (".".join(parts[start:]) for start in range(1, len(parts) - 1))
