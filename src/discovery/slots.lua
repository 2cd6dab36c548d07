-- The one script that changes the hash of slots (PROTOCOL 7). Redis runs it as a whole, by its own clock.
--
-- KEYS[1]  the hash: slot number -> {"node", "instance", "url", "peerUrl", "expiresAtMs", "leaseMs", "view"}
-- ARGV[1]  the call, JSON: discovery/wire.rs, Call
-- Returns  JSON texts: a header, then one for each slot that is held: discovery/wire.rs, Snapshot
--
-- There is no other key and no reserved field, so the state of the whole cluster is part of the values: "view" holds
-- {"epoch", "version", "slots"}, and the view with the highest version counts. It is written into the caller's value,
-- or else into the value of the lowest slot. When the last pod leaves, the view is lost, and no pod needs it.
--
-- Redis' clock may step. After a forward step a call seems to arrive late and does nothing; each pod's next call is
-- right again before any lease is expired (discovery/membership.rs). After a backward step each lease is cut to its
-- length from now.
--
-- The hash may hold anything. A foreign field (its name is no slot, or its value was not written by a pod) is ignored
-- and counted: one bad field must cost no pod its slot, and many must not cost Redis its time.

local hash, call = KEYS[1], cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The sender of a late call (Redis hung, for example) has given it up, and may have left since.
if call.sentMs and now - call.sentMs > call.lateMs then
  return { string.format('{"nowMs":%d,"late":true}', now) }
end

-- A replica would answer a call that only reads, with old data. It refuses every write, even this one without effect.
redis.call('HDEL', hash, '')

-- Whole numbers of at most 14 digits, which cjson writes exactly. It writes longer ones as fractions.
local function is_count(number)
  return type(number) == 'number' and number >= 0 and number < 1e14 and number == math.floor(number)
end

-- Returns the holder in a field, or nil for a foreign field, whose slot may be claimed.
local function read(field)
  local slot = string.match(field, '^%d%d?%d?%d?%d?%d?$') and tonumber(field)
  if not slot or slot >= call.slotsMax or string.format('%d', slot) ~= field then return nil end
  if redis.call('HSTRLEN', hash, field) > call.valueBytesMax then return nil end
  local text = redis.call('HGET', hash, field)
  local ok, value = pcall(cjson.decode, text or '')
  if not ok or type(value) ~= 'table' then return nil end
  if type(value.node) ~= 'string' or type(value.instance) ~= 'string' or type(value.url) ~= 'string' then return nil end
  if not is_count(value.expiresAtMs) then return nil end
  return { slot = slot, value = value }
end

local holders, at, ignored_field = {}, {}, nil
local view = { epoch = now, version = 0, slots = call.slots }

local function add_field(field)
  local holder = read(field)
  if not holder then
    ignored_field = ignored_field or field
    return
  end
  table.insert(holders, holder)
  at[holder.slot] = holder
  -- Earlier versions write no length: the caller's is used.
  local lease = is_count(holder.value.leaseMs) and holder.value.leaseMs or call.leaseMs
  if holder.value.expiresAtMs > now + lease then
    holder.value.expiresAtMs = now + lease
    holder.renewed = true
  end
  local stored = holder.value.view
  if type(stored) ~= 'table' then return end
  if not (is_count(stored.epoch) and is_count(stored.version) and is_count(stored.slots)) then return end
  holder.view = { epoch = stored.epoch, version = stored.version, slots = stored.slots }
  if stored.version > view.version then view.epoch, view.version = stored.epoch, stored.version end
  if stored.slots <= call.slotsMax then view.slots = math.max(view.slots, stored.slots) end
end

-- If many fields are foreign, slots are read by number instead, up to the number of slots in the values.
local fields = redis.call('HLEN', hash)
local scanned_to = call.slotsMax
if fields <= call.slots + call.fieldsMax then
  for _, field in ipairs(redis.call('HKEYS', hash)) do add_field(field) end
else
  scanned_to = 0
  while scanned_to < math.min(call.slotsMax, math.max(call.fieldsMax, view.slots)) do
    local field = string.format('%d', scanned_to)
    if redis.call('HEXISTS', hash, field) == 1 then add_field(field) end
    scanned_to = scanned_to + 1
  end
end
table.sort(holders, function(a, b) return a.slot < b.slot end)
local ignored = fields - #holders

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
    -- An instance holds one slot at most. It may hold one already, from a claim whose answer was lost.
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
    local is_unknown = slot >= scanned_to and redis.call('HEXISTS', hash, string.format('%d', slot)) == 1
    if not at[slot] and not reserved[slot] and not is_unknown then return slot end
  end
end

local function held_by_name()
  for _, holder in ipairs(holders) do
    if at[holder.slot] and holder.value.node == call.node then return holder.slot end
  end
end

-- A pod that an emptied Redis does not list also announces its leave: the others retain it and would redirect to it.
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
    value.node, value.instance, value.url, value.peerUrl = call.node, call.instance, call.url, call.peerUrl
    value.expiresAtMs, value.leaseMs = now + call.leaseMs, call.leaseMs
    mine.renewed = true
  end
end

-- Sorted by slot: the order within a hash is not defined.
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
    keeper.view, keeper.value.view = view, view
    keeper.renewed = true
  end
end

-- Keeps all that the value held, also keys that this version does not know, unless they cannot be written: cjson reads
-- an infinite number, but refuses to write it.
local function written(holder)
  local value = holder.value
  local ok, text = pcall(cjson.encode, value)
  if ok then return text end
  return cjson.encode({
    node = value.node,
    instance = value.instance,
    url = value.url,
    peerUrl = value.peerUrl,
    expiresAtMs = value.expiresAtMs,
    leaseMs = is_count(value.leaseMs) and value.leaseMs or nil,
    view = holder.view,
  })
end
for _, holder in ipairs(live) do
  if holder.renewed then redis.call('HSET', hash, holder.slot, written(holder)) end
end
for _, announcement in ipairs(announcements) do redis.call('PUBLISH', announcement[1], announcement[2]) end

-- A hash that was empty and stays empty has no epoch yet.
local epoch = view.version > 0 and view.epoch or 0
local header = '{"nowMs":%d,"late":false,"epoch":%d,"version":%d,"slots":%d,"ignored":%d,"ignoredField":%s}'
local example = ignored_field and string.gsub(string.sub(ignored_field, 1, 64), '[^%w%p ]', '?')
example = example and cjson.encode(example) or 'null'
local answer = { string.format(header, now, epoch, view.version, view.slots, ignored, example) }
for _, holder in ipairs(live) do
  local value = holder.value
  table.insert(answer, string.format(
    '{"slot":%d,"node":%s,"instance":%s,"url":%s,"peerUrl":%s,"expiresAtMs":%d}',
    holder.slot, cjson.encode(value.node), cjson.encode(value.instance), cjson.encode(value.url),
    type(value.peerUrl) == 'string' and cjson.encode(value.peerUrl) or 'null', value.expiresAtMs
  ))
end
return answer
