"""Which names and classes can be registered; `test_bad_plugins.py` has those that cannot."""

from hypothesis import given
from hypothesis import strategies as st

from tests.core.hosting.plugin_texts import names, registering, source
from torchyard.core.hosting.host import Host
from torchyard.core.hosting.params import KINDS


@given(name=st.text(max_size=12), kind=st.sampled_from(list(KINDS)))
def test_any_name_is_found_or_sets_its_plugin_aside(name, kind):
    own = Host()
    own.load(source("mine"), lambda: registering(kind, name))
    usable = bool(name) and name.isprintable() and not set(name) & set(" =,*")
    assert names(own, kind) == [name] * usable
    assert [": not a usable name" in broken.reason for broken in own.broken] == [True] * (
        not usable
    )
    if usable:
        assert own.find(kind, name) is own.find(kind, f"mine/{name}")
