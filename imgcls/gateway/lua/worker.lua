-- What a worker's death leaves its batch with is a 507 or a 500, as it falls. It becomes one status, 507, so that the
-- route can ask another worker, and not repeat the 500 that a handler has answered for an image.
function envoy_on_response(handle)
  if handle:headers():get(":status") ~= "500" then
    return
  end
  local body = handle:body()
  if body ~= nil and body:length() > 0 and body:length() < 1024 then
    if string.find(body:getBytes(0, body:length()), '"message": "Worker died."', 1, true) then
      handle:headers():replace(":status", "507")
    end
  end
end
