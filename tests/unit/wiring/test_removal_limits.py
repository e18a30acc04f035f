"""The limits of the guard against mass removal, as the settings state them."""

from datetime import timedelta

from msgspec.structs import fields

from milo_discoveryd.config.settings import RemovalSettings
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.wiring.configured_source import removal_limits


def test_each_removal_limit_has_the_value_of_its_setting() -> None:
    limits = removal_limits(
        RemovalSettings(count=1, share=0.5, verify_after=timedelta(seconds=2), per_second=3.0, hold_not_ready=False)
    )
    assert limits == RemovalLimits(count=1, share=0.5, verify_after_s=2.0, per_second=3.0)
    unset = [field.name for field in fields(limits) if getattr(limits, field.name) == field.default]
    assert not unset, "settings that this test leaves at their defaults, or that are not passed on"
