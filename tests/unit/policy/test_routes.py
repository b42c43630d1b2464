from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from handfast.config import Route, Service
from handfast.policy.routes import Routes

SERVICE = Service(targets=())


def route(*sni: str, alpn: tuple[str, ...] = (), passthrough: bool = False) -> Route:
    return Route(sni=sni, alpn=alpn, passthrough=passthrough, service=SERVICE)


def test_the_first_route_that_fits_is_taken() -> None:
    first, second = route("*.example.com"), route("www.example.com")

    assert Routes((first, second)).find("www.example.com", "", passthrough=False) is first
    assert Routes((second, first)).find("www.example.com", "", passthrough=False) is second


def test_case_and_the_dot_at_the_end_make_no_difference() -> None:
    exact, wild = route("www.example.com"), route("*.example.org")
    routes = Routes((exact, wild))

    assert routes.find("WWW.Example.COM.", "", passthrough=False) is exact
    assert routes.find("A.EXAMPLE.org.", "", passthrough=False) is wild


def test_a_wildcard_is_one_label_and_not_none() -> None:
    routes = Routes((route("*.example.com"),))

    assert routes.find("a.example.com", "", passthrough=False)
    for other in ("example.com", "a.b.example.com", ".example.com", "", "aexample.com"):
        assert routes.find(other, "", passthrough=False) is None


def test_a_client_cannot_name_a_pattern() -> None:
    assert Routes((route("a.example.com"),)).find("*.example.com", "", passthrough=False) is None


def test_the_protocol_has_to_be_one_of_the_routes() -> None:
    web, rest = route(alpn=("h2", "http/1.1")), route()
    routes = Routes((web, rest))

    assert routes.find("any.example.com", "h2", passthrough=False) is web
    assert routes.find("", "http/1.1", passthrough=False) is web
    assert routes.find("", "", passthrough=False) is rest
    assert routes.find("", "imap", passthrough=False) is rest


def test_a_route_without_conditions_takes_every_client() -> None:
    everyone = route()

    assert Routes((everyone,)).find("", "", passthrough=False) is everyone
    assert Routes(()).find("", "", passthrough=False) is None


def test_a_client_is_passed_through_only_where_the_first_that_fits_says_so() -> None:
    ours, through = route("www.example.com"), route("*.example.com", passthrough=True)
    routes = Routes((ours, through))

    assert routes.find("www.example.com", "", passthrough=True) is None
    assert routes.find("db.example.com", "", passthrough=True) is through
    assert routes.find("example.org", "", passthrough=True) is None


def test_a_route_for_another_protocol_does_not_keep_a_client_from_being_passed_through() -> None:
    ours, through = route("a.example.com", alpn=("h2",)), route("a.example.com", passthrough=True)
    routes = Routes((ours, through))

    assert routes.find("a.example.com", "h2", passthrough=True) is None
    assert routes.find("a.example.com", "http/1.1", passthrough=True) is through


def test_after_a_handshake_passthrough_routes_are_not_in_question() -> None:
    through, ours = route("a.example.com", passthrough=True), route("a.example.com")

    assert Routes((through, ours)).find("a.example.com", "", passthrough=False) is ours


labels = st.sampled_from(["a", "b", "*", ""])
names = st.lists(labels, max_size=4).map(".".join)
routes = st.builds(
    Route,
    sni=st.lists(names.filter(lambda name: name.removesuffix(".")), max_size=3).map(tuple),
    alpn=st.lists(st.sampled_from(["h2", "x"]), max_size=1).map(tuple),
    passthrough=st.booleans(),
    service=st.just(SERVICE),
)


@given(table=st.lists(routes, max_size=6).map(tuple), sni=st.one_of(names, st.text()),
       alpn=st.sampled_from(["", "h2", "x"]))  # fmt: skip
def test_it_finds_what_going_through_the_list_would_find(
    table: tuple[Route, ...], sni: str, alpn: str
) -> None:
    fitting = [
        each
        for each in table
        if (not each.sni or any(_fits(pattern, sni) for pattern in each.sni))
        and (not each.alpn or alpn in each.alpn)
    ]
    ours = [each for each in fitting if not each.passthrough]
    found = Routes(table)

    assert found.find(sni, alpn, passthrough=False) is (ours[0] if ours else None)
    through = fitting[0] if fitting and fitting[0].passthrough else None
    assert found.find(sni, alpn, passthrough=True) is through


def _fits(pattern: str, name: str) -> bool:
    pattern, name = (each.lower().removesuffix(".") for each in (pattern, name))
    if not name or pattern == name:
        return bool(name) or not pattern
    first, dot, rest = name.partition(".")
    return bool(first and dot) and pattern == f"*.{rest}"
