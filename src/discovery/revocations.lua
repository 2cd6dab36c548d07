-- Adds a revocation of tokens to the hash of all of them, and tells every pod (PROTOCOL 5). One that is there for the same
-- tokens is widened to cover what both cover.
--
-- KEYS[1]  the hash: "user:<user>" or "jti:<id>" -> {"issuedBeforeMs"?, "untilMs"}
-- ARGV     the field, the value, the channel, the most fields that the hash may have
-- Returns  1, or 0 where there is no room

local hash, field, channel, fields_max = KEYS[1], ARGV[1], ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function read(text)
  local ok, rule = pcall(cjson.decode, text)
  if ok and type(rule) == 'table' and type(rule.untilMs) == 'number' then return rule end
end

local rule, known = read(ARGV[2]), redis.call('HGET', hash, field)
known = known and read(known)
if known then
  rule.untilMs = math.max(rule.untilMs, known.untilMs)
  if type(known.issuedBeforeMs) ~= 'number' then rule.issuedBeforeMs = nil end
  if rule.issuedBeforeMs then rule.issuedBeforeMs = math.max(rule.issuedBeforeMs, known.issuedBeforeMs) end
elseif redis.call('HLEN', hash) >= fields_max then
  local all = redis.call('HGETALL', hash)
  for index = 1, #all, 2 do
    local other = read(all[index + 1])
    if not other or other.untilMs <= now then redis.call('HDEL', hash, all[index]) end
  end
  if redis.call('HLEN', hash) >= fields_max then return 0 end
end

-- cjson writes long numbers as fractions.
local before = rule.issuedBeforeMs and string.format('"issuedBeforeMs":%.0f,', rule.issuedBeforeMs) or ''
local value = string.format('{%s"untilMs":%.0f}', before, rule.untilMs)
redis.call('HSET', hash, field, value)
redis.call('PUBLISH', channel, field .. '\n' .. value)
return 1
