-- Forgets how far a partition's signals were applied, because its stream was deleted and begins anew.
-- KEYS: 1 fence, 2 progress. ARGV: 1 token, 2 the partition's place, 3 what is stored for it.
-- Returns 1 when it was forgotten; 0 when the lease is lost or something else is stored.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[3] then
  return 0
end
return redis.call('HDEL', KEYS[2], ARGV[2])
