"""When it is time to send."""

from __future__ import annotations

import asyncio

from girder_dask.utils.throttle import Throttle

LONG = 60.0


async def turned(pace: Throttle, within: float = 1.0) -> bool:
    """Say whether it is time to send within some seconds."""
    task = asyncio.create_task(pace.turn())
    done, _ = await asyncio.wait([task], timeout=within)
    task.cancel()
    return bool(done)


async def test_nothing_is_sent_before_there_is_something() -> None:
    assert not await turned(Throttle(0.0), within=0.05)


async def test_an_idle_sender_sends_at_once() -> None:
    pace = Throttle(LONG)
    pace.poke(urgent=False)
    assert await turned(pace)


async def test_a_busy_sender_waits_for_its_interval() -> None:
    pace = Throttle(LONG)
    pace.sent()
    pace.poke(urgent=False)
    assert not await turned(pace, within=0.05)


async def test_what_is_urgent_does_not_wait() -> None:
    pace = Throttle(LONG)
    pace.sent()
    pace.poke(urgent=False)
    waiting = asyncio.create_task(pace.turn())
    await asyncio.sleep(0)
    pace.poke(urgent=True)
    await asyncio.wait_for(waiting, 1.0)


async def test_a_turn_answers_all_pokes_before_it() -> None:
    pace = Throttle(0.0)
    pace.poke(urgent=True)
    pace.poke(urgent=False)
    assert await turned(pace)
    assert not await turned(pace, within=0.05)


async def test_waiting_can_be_canceled() -> None:
    pace = Throttle(LONG)
    pace.sent()
    pace.poke(urgent=False)
    waiting = asyncio.create_task(pace.turn())
    await asyncio.sleep(0.01)
    waiting.cancel()
    done, _ = await asyncio.wait([waiting], timeout=1.0)
    assert waiting in done
    assert waiting.cancelled()


async def test_what_is_urgent_uses_up_its_burst_and_gets_it_back() -> None:
    pace = Throttle(0.1, burst=2)
    for _ in range(2):
        pace.poke(urgent=True)
        assert await turned(pace, within=0.05)
        pace.sent()
    begun = asyncio.get_running_loop().time()
    pace.poke(urgent=True)
    assert await turned(pace)
    waited = asyncio.get_running_loop().time() - begun
    assert 0.05 < waited < 0.5
    pace.sent()


async def test_what_somebody_waits_for_does_not_wait_for_credit() -> None:
    pace = Throttle(LONG, burst=1)
    pace.poke(urgent=True)
    assert await turned(pace)
    pace.sent()
    pace.poke(urgent=True)
    waiting = asyncio.create_task(pace.turn())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    pace.poke(urgent=True, at_once=True)
    await asyncio.wait_for(waiting, 1.0)
    pace.sent()
    pace.poke(urgent=True)
    assert not await turned(pace, within=0.05)


async def test_a_burst_is_no_larger_after_a_long_rest() -> None:
    pace = Throttle(0.02, burst=2)
    await asyncio.sleep(0.2)
    taken = 0
    begun = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - begun < 0.1:
        pace.poke(urgent=True)
        await pace.turn()
        pace.sent()
        taken += 1
    assert taken <= 2 + 0.1 / 0.02 + 1


async def test_a_sender_rests_in_proportion_to_what_a_sending_took() -> None:
    pace = Throttle(LONG, burst=1, spacing=LONG, rest=5.0)
    loop = asyncio.get_running_loop()
    for took in (0.02, 0.1):
        pace.poke(urgent=True)
        assert await turned(pace)
        await asyncio.sleep(took)
        pace.sent()
        begun = loop.time()
        pace.poke(urgent=True)
        assert await turned(pace)
        assert 4 * took < loop.time() - begun < 1.0
        pace.sent()
        await asyncio.sleep(0.1)


async def test_what_is_not_urgent_makes_no_debt() -> None:
    pace = Throttle(0.0, burst=2, spacing=0.2)
    for _ in range(50):
        pace.poke(urgent=False)
        assert await turned(pace)
        pace.sent()
    begun = asyncio.get_running_loop().time()
    pace.poke(urgent=True)
    assert await turned(pace)
    assert asyncio.get_running_loop().time() - begun < 0.5
