"""The order in which silos are drawn out of the nodes."""

from flwr.clientapp import ClientApp
from in_process_grid import InProcessGrid

from flower_split.strategies.hosting.roster import OrderedGrid, Roster


def test_nodes_come_by_silo_and_those_without_a_name_at_the_end():
    names = {1: "b", 2: "10", 4: "9", 5: "a", 6: "010"}
    grid = OrderedGrid(InProcessGrid(ClientApp(), 6, node_ids=range(1, 7)), names)
    assert list(grid.get_node_ids()) == [4, 6, 2, 5, 1, 3]


def test_a_name_that_several_nodes_have_is_nobodys():
    roster = Roster()
    for node, name in ((1, "north"), (2, "south"), (3, "north"), (4, "")):
        roster.note(node, name)
    assert roster.nodes() == {"south": 2}
    assert roster.names == {1: "north", 2: "south", 3: "north"}
