-- The one script that changes the hash of slots (PROTOCOL 7). Redis runs it as a whole, by its own clock.
--
-- KEYS[1]  the hash: slot number -> {"node", "instance", "url", "expiresAtMs", "view"}
-- ARGV[1]  the call, JSON: discovery/wire.rs, Call
-- Returns  JSON texts: a header, then one for each slot that is held: discovery/wire.rs, Snapshot
--
-- There is no other key and no reserved field, so what belongs to the cluster as a whole travels in the values: "view"
-- says {"epoch", "version", "slots"}, and the one with the highest version counts. It is written into the caller's value,
-- or else into that of the lowest slot. When the last pod leaves, nobody is left to whom it would matter.

local hash, call = KEYS[1], cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- A call that was stuck on its way (a Redis that hung) comes from a pod that has given it up, and may have left since.
if call.sentMs and now - call.sentMs > call.lateMs then
  return { cjson.encode({ nowMs = now, late = true }) }
end

-- A replica would answer who only looks, with what it last heard of. It refuses every change, also one of nothing.
redis.call('HDEL', hash, '')

local function is_count(number)
  return type(number) == 'number' and number >= 0 and number < 2 ^ 53
end

-- What a field says, or nil where it is no slot's, or no pod's: such a one is passed over, and may be claimed.
local function read(field, text)
  local slot = string.match(field, '^%d%d?%d?%d?%d?%d?$') and tonumber(field)
  if not slot or slot >= call.slotsMax or string.format('%d', slot) ~= field then return nil end
  local ok, value = pcall(cjson.decode, text)
  if not ok or type(value) ~= 'table' then return nil end
  if type(value.node) ~= 'string' or type(value.instance) ~= 'string' or type(value.url) ~= 'string' then return nil end
  if not is_count(value.expiresAtMs) then return nil end
  return { slot = slot, value = value }
end

local holders, at = {}, {}
local view = { epoch = now, version = 0, slots = call.slots }
local fields = redis.call('HGETALL', hash)
for i = 1, #fields, 2 do
  local holder = read(fields[i], fields[i + 1])
  if holder then
    table.insert(holders, holder)
    at[holder.slot] = holder
    local told = holder.value.view
    if type(told) == 'table' and is_count(told.epoch) and is_count(told.version) and is_count(told.slots) then
      if told.version > view.version then view.epoch, view.version = told.epoch, told.version end
      view.slots = math.max(view.slots, told.slots)
    end
  end
end
table.sort(holders, function(a, b) return a.slot < b.slot end)

local changed, announcements = false, {}

local function announce(channel, node)
  changed = true
  table.insert(announcements, { channel, node })
end

local function vacate(holder)
  redis.call('HDEL', hash, holder.slot)
  at[holder.slot] = nil
  announce(call.leaveChannel, holder.value.node)
end

local mine
local is_known = false
for _, holder in ipairs(holders) do
  if holder.value.instance == call.instance then
    -- An instance has one slot at most: a claim whose answer was lost may have given it one already.
    is_known = true
    if call.action == 'leave' or mine then vacate(holder) else mine = holder end
  elseif call.judge and holder.value.expiresAtMs < now then
    vacate(holder)
  end
end

local function lowest_vacant()
  local reserved = {}
  for _, slot in ipairs(call.reserved) do reserved[slot] = true end
  for slot = 0, call.slotsMax - 1 do
    if not at[slot] and not reserved[slot] then return slot end
  end
end

local function held_by_name()
  for _, holder in ipairs(holders) do
    if at[holder.slot] and holder.value.node == call.node then return holder.slot end
  end
end

-- One that was forgotten with the hash says goodbye all the same: the others remember it, and would send clients to it.
if call.action == 'leave' and not is_known and not held_by_name() then
  table.insert(announcements, { call.leaveChannel, call.node })
end

local function choose()
  if call.slot and not at[call.slot] then return call.slot end
  if call.action ~= 'claim' then return nil end
  return call.takeOver and held_by_name() or lowest_vacant()
end

if call.action == 'hold' or call.action == 'claim' then
  if not mine then
    local slot = choose()
    if slot then
      mine = at[slot] or { slot = slot, value = {} }
      at[slot] = mine
      announce(call.joinChannel, call.node)
    end
  elseif mine.value.url ~= call.url then
    changed = true
  end
  if mine then
    local value = mine.value
    value.node, value.instance, value.url = call.node, call.instance, call.url
    value.expiresAtMs = now + call.leaseMs
    mine.renewed = true
  end
end

-- By slot number: a hash's own order is Redis' business.
local live = {}
for _, holder in pairs(at) do
  table.insert(live, holder)
  view.slots = math.max(view.slots, holder.slot + 1)
end
table.sort(live, function(a, b) return a.slot < b.slot end)
view.slots = math.min(view.slots, call.slotsMax)

if changed then
  view.version = view.version + 1
  local keeper = mine and at[mine.slot] or live[1]
  if keeper then
    keeper.value.view = view
    keeper.renewed = true
  end
end
for _, holder in ipairs(live) do
  if holder.renewed then redis.call('HSET', hash, holder.slot, cjson.encode(holder.value)) end
end
for _, announcement in ipairs(announcements) do redis.call('PUBLISH', announcement[1], announcement[2]) end

-- A hash that was empty and stays so has no life yet, and so no epoch.
local epoch = view.version > 0 and view.epoch or 0
local answer = {
  cjson.encode({ nowMs = now, late = false, epoch = epoch, version = view.version, slots = view.slots }),
}
for _, holder in ipairs(live) do
  local value = holder.value
  table.insert(answer, cjson.encode({
    slot = holder.slot,
    node = value.node,
    instance = value.instance,
    url = value.url,
    expiresAtMs = value.expiresAtMs,
  }))
end
return answer
