"""What is done inside Redis: taking a batch, acknowledging one; and finding a lost one.

The scripts keep kombu's keys and formats. They are sent whole (``EVAL``), so a
server that was restarted needs no second attempt, and Redis 5 to 7 know all
their commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["Taken", "ack_command", "find_command", "parse_taken", "take_command"]

#: Moves messages from the lists of some queues to the unacknowledged ones.
#:
#: They are taken in the order in which as many BRPOPs would have taken them: the
#: lists come by priority, then by queue, and where queues take turns, the one
#: that has just given a message goes to the end.
#:
#: Nothing is popped before it is stored, since a script that fails has no way
#: back. The two commands at its start change nothing: they fail where a key is of
#: another type, and as writes that need no memory they let the ones behind them
#: through on a server without free memory, which is where taking is urgent.
#:
#: A message that cannot be stored as kombu would store it is popped and returned
#: all the same, without a tag.
#:
#: KEYS: unacked, unacked_index, all lists. ARGV: the score, messages at most, bytes
#: after which no further one is taken, how many queues, whether they take turns.
#: Returns whether there may be more, then by turns the number of a list, a message,
#: and the delivery tag under which it is stored.
TAKE = """
local unacked, index = KEYS[1], KEYS[2]
local score, most, room = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local queues, turns = tonumber(ARGV[4]), ARGV[5] == '1'
local lists = #KEYS - 2

redis.call('HDEL', unacked, '')
redis.call('ZREM', index, '')

local order, empty, taken = {}, {}, {}
for place = 1, queues do order[place] = place end

local function oldest()
  for first = 0, lists - 1, queues do
    for place = 1, queues do
      local list = first + order[place]
      if not empty[list] then
        local message = redis.call('LINDEX', KEYS[2 + list], -1)
        if message then return list, message, place end
        empty[list] = true
      end
    end
  end
end

local function encoded(value)
  if value == cjson.null then return 'null' end
  if type(value) == 'string' then return cjson.encode(value) end
end

local function entry(message)
  local known, fields = pcall(cjson.decode, message)
  local properties = known and type(fields) == 'table' and fields.properties
  local delivery = type(properties) == 'table' and properties.delivery_info
  if type(delivery) ~= 'table' or type(properties.delivery_tag) ~= 'string' then return end
  local exchange, key = encoded(delivery.exchange), encoded(delivery.routing_key)
  if exchange and key then
    return properties.delivery_tag, '[' .. message .. ', ' .. exchange .. ', ' .. key .. ']'
  end
end

local count = 0
while count < most and room > 0 do
  local list, message, place = oldest()
  if not list then
    table.insert(taken, 1, 0)
    return taken
  end
  local tag, whole = entry(message)
  if tag then
    redis.call('HSET', unacked, tag, whole)
    redis.call('ZADD', index, score, tag)
  end
  redis.call('RPOP', KEYS[2 + list])
  taken[#taken + 1] = list
  taken[#taken + 1] = message
  taken[#taken + 1] = tag or false
  if turns then table.insert(order, table.remove(order, place)) end
  count = count + 1
  room = room - #message
end
table.insert(taken, 1, 1)
return taken
"""

#: Removes messages from the unacknowledged ones, if they are still the caller's.
#:
#: The score is when the caller has taken the message. Another one is that of
#: another worker, who got it after a restore: it is not ours to acknowledge.
#:
#: KEYS: unacked, unacked_index. ARGV: delivery tags and scores, in turns.
#: Returns how many were somebody else's.
ACK = """
local others = 0
for place = 1, #ARGV, 2 do
  local tag = ARGV[place]
  local score = redis.call('ZSCORE', KEYS[2], tag)
  if not score or tonumber(score) == tonumber(ARGV[place + 1]) then
    redis.call('ZREM', KEYS[2], tag)
    redis.call('HDEL', KEYS[1], tag)
  else
    others = others + 1
  end
end
return others
"""


class Taken(NamedTuple):
    """What one batch has brought."""

    #: The number of the queue, the message, and the tag under which it is stored in
    #: unacked; None: it is not.
    messages: list[tuple[int, bytes, bytes | None]]
    #: Whether the lists may have more: they have not been seen empty.
    is_more: bool


def take_command(
    unacked: str,
    index: str,
    lists: Sequence[str],
    queues: int,
    *,
    score: str,
    most: int,
    room: int,
    turns: bool,
) -> tuple[Any, ...]:
    """Return the command that takes a batch of *most* messages from *lists*."""
    keys = (unacked, index, *lists)
    return ("EVAL", TAKE, len(keys), *keys, score, most, room, queues, int(turns))


def parse_taken(reply: Sequence[Any], queues: int) -> Taken:
    """Read the reply to it; *queues* as in the command."""
    messages = [
        ((number - 1) % queues, message, tag)
        for number, message, tag in zip(reply[1::3], reply[2::3], reply[3::3], strict=True)
    ]
    return Taken(messages, bool(reply[0]))


def ack_command(unacked: str, index: str, acks: Iterable[tuple[str, str]]) -> tuple[Any, ...]:
    """Return the command that acknowledges pairs of a delivery tag and a score."""
    return ("EVAL", ACK, 2, unacked, index, *(word for ack in acks for word in ack))


def find_command(index: str, score: str) -> tuple[Any, ...]:
    """Return the command that asks for the delivery tags with *score*."""
    return ("ZRANGEBYSCORE", index, score, score)
