-- Replaces one field of a hash if it still holds what was read, and writes the change to the log.
-- KEYS: 1 hash, 2 log (stream)
-- ARGV: 1 field, 2 what was read (empty: no such field), 3 what it becomes, 4 the log's entry
-- Returns 1, or 0 where somebody else was faster: then nothing is written.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('XADD', KEYS[2], '*', 'm', ARGV[4])
return 1
