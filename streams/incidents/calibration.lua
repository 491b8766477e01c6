-- Writes what is known of the calibration, while the lease is ours.
-- KEYS: 1 fence, 2 calibration (hash). ARGV: 1 token, 2 the status, 3 the drift watch.
-- Returns 1 when it was written, 0 when the lease is lost.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[2], 'm', ARGV[2], 'watch', ARGV[3])
return 1
