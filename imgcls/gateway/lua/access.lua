-- Runs before anything else of a request: what only the gateway may say is removed, and the deadline is set.
local LONGEST_MS = 60000

function envoy_on_request(handle)
  local headers = handle:headers()
  local asked = headers:get("x-timeout-ms")
  local asked_ms = asked and tonumber(asked)
  local timeout_ms = LONGEST_MS
  if asked_ms and asked_ms >= 1 and asked_ms < LONGEST_MS then
    timeout_ms = math.floor(asked_ms)
  end
  headers:replace("x-envoy-upstream-rq-timeout-ms", tostring(timeout_ms))
  headers:replace("x-imgcls-deadline-ms", string.format("%.0f", handle:timestamp() + timeout_ms))
  headers:remove("authorization")
end
