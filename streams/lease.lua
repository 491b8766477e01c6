-- Lease of a role with a fencing token.
-- KEYS: 1 lease (hash: holder, token), 2 fence (counter of tokens)
-- ARGV: 1 operation, 2 holder, 3 token, 4 time to live in ms
-- acquire: token, or 0 when another holds it. renew and release: 1, or 0 when the lease is no longer ours.
local operation, holder, token = ARGV[1], ARGV[2], ARGV[3]

if operation == 'acquire' then
  local held = redis.call('HMGET', KEYS[1], 'holder', 'token')
  if held[1] == holder then
    return tonumber(held[2]) -- our earlier call arrived although its reply did not
  end
  if held[1] then
    return 0
  end
  local fresh = redis.call('INCR', KEYS[2])
  redis.call('HSET', KEYS[1], 'holder', holder, 'token', fresh)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  return fresh
end

-- Only the newest token may renew: nobody took over, even if the lease itself has expired meanwhile.
if redis.call('GET', KEYS[2]) ~= token then
  return 0
end

if operation == 'renew' then
  redis.call('HSET', KEYS[1], 'holder', holder, 'token', token)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  return 1
end

if redis.call('HGET', KEYS[1], 'token') == token then
  redis.call('DEL', KEYS[1])
end
return 1
