-- Moves one entry of a group to the group's dead letters: appended there and acknowledged here, or neither.
-- KEYS: 1 stream, 2 dead letters
-- ARGV: 1 group, 2 entry id, 3 body (empty: nothing is kept, the entry was trimmed), 4 reason, 5 deliveries,
--       6 most dead letters kept, about
-- Returns 1 when the entry was still pending, else 0, and then nothing is written.
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1) == 0 then
  return 0
end
if ARGV[3] ~= '' then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'm', ARGV[3], 'entry', ARGV[2], 'reason', ARGV[4],
    'deliveries', ARGV[5])
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return 1
