"""Which faults the mutation tool makes of a piece of code."""

import ast

from tests.mutants.operators import mutants_of, mutated

SOURCE = '''
"""Not mutated."""
LIMIT = 0.5

def near(a: int, b: int = 3) -> bool:
    """Neither is this."""
    log(a)
    total = pooled(a, b, size=2).detach()
    return abs(a - b) < LIMIT if a else False

class Model:
    size = 4

    def step(self, x):
        assert x, "nor this"
        with torch.no_grad():
            self.online(x.clamp(min=0))
'''


def test_every_kind_of_fault() -> None:
    found = mutants_of(SOURCE)
    assert [(m.scope, m.before, m.after) for m in found if m.scope == ""] == [("", "LIMIT = 0.5", "LIMIT = 1.0")]
    pooled = {m.after for m in found if m.before == "total = pooled(a, b, size=2).detach()"}
    assert pooled == {
        "total = pooled(a, b, size=2)",
        "total = pooled(b, a, size=2).detach()",
        "total = pooled(a, b).detach()",
        "total = pooled(a, b, size=3).detach()",
        "total = pooled(a, b, size=1).detach()",
    }
    assert {m.after for m in found if m.before == "log(a)"} == {"a", "pass"}
    returned = {m.after for m in found if m.before.startswith("return")}
    assert "return abs(a + b) < LIMIT if a else False" in returned
    assert "return abs(a - b) <= LIMIT if a else False" in returned
    assert "return a - b < LIMIT if a else False" in returned
    assert "return False if a else abs(a - b) < LIMIT" in returned
    assert {m.scope for m in found} == {"", "near", "Model.step"}
    assert {m.after for m in found if m.before == "with torch.no_grad():"} == {"if True:"}
    assert "self.target(x.clamp(min=0))" in {m.after for m in found}


def test_each_is_the_file_with_that_fault_alone() -> None:
    lines = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in mutants_of(SOURCE):
        changed = mutated(SOURCE, mutant.number).splitlines()
        differing = [(a, b) for a, b in zip(lines, changed, strict=True) if a != b]
        assert [(a.strip(), b.strip()) for a, b in differing] == [(mutant.before, mutant.after)]
