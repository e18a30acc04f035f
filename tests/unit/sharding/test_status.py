from milo_discoveryd.sharding.member import Member
from milo_discoveryd.sharding.status import GroupStatus, MemberStatus, group_status
from tests.unit.sharding.driver import Driver


def test_sharding_status_before_the_first_read_is_empty() -> None:
    found = group_status("dns", Member("a", "a#1"), "no API server")
    assert found == GroupStatus(group="dns", member="a", view=0, is_settled=False, members=(), problem="no API server")


def test_sharding_status_lists_members_of_the_view_and_joining_members() -> None:
    driver = Driver("a", "b")
    driver.run_until(lambda: driver.owned("a") and driver.owned("b"))
    driver.api.delete("b", driver.now)
    driver.add("c", Member("c", "c#1", weight=2.0))
    driver.run(2, "c")
    driver.run(13, "a")
    driver.members["a"].leave()
    driver.run(2, "a")
    found = group_status("dns", driver.members["a"], "")
    assert found.view == 1
    assert found.members == (
        MemberStatus(name="a", weight=1.0, is_in_view=True, is_alive=True, is_leaving=True, acknowledged=1),
        MemberStatus(name="b", weight=1.0, is_in_view=True, is_alive=False, is_leaving=False, acknowledged=0),
        MemberStatus(name="c", weight=2.0, is_in_view=False, is_alive=True, is_leaving=False, acknowledged=0),
    )
    assert found.weights == {"a": 1.0, "b": 1.0}
