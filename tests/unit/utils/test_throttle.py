"""The throttle that coalesces messages into batches."""

from __future__ import annotations

import asyncio

from girder_dask.utils.throttle import Throttle

LONG = 120.0


async def turned(pace: Throttle, within: float = 20.0) -> bool:
    """Say whether it is time to send within some seconds."""
    task = asyncio.create_task(pace.turn())
    done, _ = await asyncio.wait([task], timeout=within)
    task.cancel()
    return bool(done)


async def test_throttle_waits_for_a_message() -> None:
    assert not await turned(Throttle(0.0), within=0.05)


async def test_throttle_lets_an_idle_sender_send_at_once() -> None:
    pace = Throttle(LONG)
    pace.poke(urgent=False)
    assert await turned(pace)


async def test_throttle_lets_a_busy_sender_wait_for_its_interval() -> None:
    pace = Throttle(LONG)
    pace.sent(1)
    pace.poke(urgent=False)
    assert not await turned(pace, within=0.05)


async def test_throttle_does_not_delay_urgent_messages() -> None:
    pace = Throttle(LONG)
    pace.sent(1)
    pace.poke(urgent=False)
    waiting = asyncio.create_task(pace.turn())
    await asyncio.sleep(0)
    pace.poke(urgent=True)
    await asyncio.wait_for(waiting, 20.0)


async def test_throttle_coalesces_messages_into_one_turn() -> None:
    pace = Throttle(0.0)
    pace.poke(urgent=True)
    pace.poke(urgent=False)
    assert await turned(pace)
    assert not await turned(pace, within=0.05)


async def test_throttle_can_be_canceled_while_it_waits() -> None:
    pace = Throttle(LONG)
    pace.sent(1)
    pace.poke(urgent=False)
    waiting = asyncio.create_task(pace.turn())
    await asyncio.sleep(0.01)
    waiting.cancel()
    done, _ = await asyncio.wait([waiting], timeout=20.0)
    assert waiting in done
    assert waiting.cancelled()


async def test_throttle_spends_and_regains_the_tokens_of_urgent_batches() -> None:
    pace = Throttle(0.1, burst=2)
    begun = asyncio.get_running_loop().time()
    for _ in range(3):
        pace.poke(urgent=True)
        assert await turned(pace)
        pace.sent(1)
    # The third had to wait for a token.
    assert asyncio.get_running_loop().time() - begun > 0.09


async def test_throttle_does_not_delay_what_a_caller_waits_for() -> None:
    pace = Throttle(LONG, burst=1)
    pace.poke(urgent=True)
    assert await turned(pace)
    pace.sent(1)
    pace.poke(urgent=True)
    waiting = asyncio.create_task(pace.turn())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    pace.poke(urgent=True, at_once=True)
    await asyncio.wait_for(waiting, 20.0)
    pace.sent(1)
    pace.poke(urgent=True)
    assert not await turned(pace, within=0.05)


async def test_throttle_holds_no_more_tokens_than_its_burst() -> None:
    pace = Throttle(0.02, burst=2)
    await asyncio.sleep(0.2)
    taken = 0
    begun = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - begun < 0.1:
        pace.poke(urgent=True)
        await pace.turn()
        pace.sent(1)
        taken += 1
    elapsed = asyncio.get_running_loop().time() - begun
    assert taken <= 2 + elapsed / 0.02 + 1


async def test_throttle_rests_in_proportion_to_the_last_batch() -> None:
    pace = Throttle(LONG, burst=1, spacing=LONG, rest=5.0)
    loop = asyncio.get_running_loop()
    for took in (0.02, 0.1):
        pace.poke(urgent=True)
        assert await turned(pace)
        await asyncio.sleep(took)
        pace.sent(1)
        begun = loop.time()
        pace.poke(urgent=True)
        assert await turned(pace), "far sooner than its spacing"
        assert 4 * took < loop.time() - begun
        pace.sent(1)
        await asyncio.sleep(0.1)


async def test_throttle_rests_for_less_after_a_small_batch() -> None:
    # The shortest of three, as other processes may hold up each.
    rests = {count: min([await rest_after(count) for _ in range(3)]) for count in (1, 10, 100)}
    assert rests[1] < 2.5 < rests[10]
    assert rests[100] < 3 * rests[10]


async def rest_after(count: int) -> float:
    """Return how many times as long as a batch of so many messages took its sender rests."""
    loop = asyncio.get_running_loop()
    pace = Throttle(LONG, burst=1, spacing=LONG, rest=5.0, full_batch=10)
    pace.poke(urgent=True)
    assert await turned(pace)
    begun = loop.time()
    await asyncio.sleep(0.05)
    pace.sent(count)
    sent = loop.time()
    pace.poke(urgent=True)
    assert await turned(pace)
    return (loop.time() - sent) / (sent - begun)


async def test_throttle_makes_no_debt_for_batches_that_are_not_urgent() -> None:
    pace = Throttle(0.0, burst=2, spacing=0.2)
    for _ in range(50):
        pace.poke(urgent=False)
        assert await turned(pace)
        pace.sent(1)
    begun = asyncio.get_running_loop().time()
    pace.poke(urgent=True)
    assert await turned(pace)
    assert asyncio.get_running_loop().time() - begun < 5, "a debt of 50 takes 10 s"
