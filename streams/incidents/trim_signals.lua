-- Trims a partition's signals to the newest `keep` of those that the correlator has applied; others stay.
-- KEYS: 1 signals
-- ARGV: 1 id of the last applied signal, 2 keep, 3 most entries to look at in one call
-- Returns the number trimmed.
local keep, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local excess = redis.call('XLEN', KEYS[1]) - keep
if excess <= 0 then
  return 0
end
local oldest = redis.call('XRANGE', KEYS[1], '-', ARGV[1], 'COUNT', math.min(excess, most) + 1)
if #oldest < 2 then
  return 0
end
return redis.call('XTRIM', KEYS[1], 'MINID', oldest[#oldest][1])
