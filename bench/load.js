// Load from k6, run by bench/load.py. VUS: a closed loop of so many connections, each sending its next request when the
// last is answered. RATE: an open loop, so many requests a second whether or not earlier ones are answered.
import http from "k6/http";
import { check } from "k6";

const bodies = JSON.parse(open(__ENV.BODIES)).map((path) => open(path, "b"));
const headers = JSON.parse(__ENV.HEADERS);
const common = { duration: __ENV.DURATION, gracefulStop: "30s" };
const closed = { executor: "constant-vus", vus: Number(__ENV.VUS), ...common };
const opened = {
  executor: "constant-arrival-rate", rate: Number(__ENV.RATE), timeUnit: "1s",
  preAllocatedVUs: Number(__ENV.VUS), maxVUs: Number(__ENV.VUS), ...common,
};

export const options = {
  scenarios: { load: __ENV.RATE ? opened : closed },
  summaryTrendStats: ["med", "p(99)"],
  discardResponseBodies: true,
};

export default function () {
  const answer = http.post(__ENV.URL, bodies[(__VU * 7919 + __ITER) % bodies.length], { headers, timeout: "60s" });
  check(answer, { "is 200": (r) => r.status === 200 });
}

export function handleSummary(data) {
  const m = data.metrics;
  return {
    stdout: JSON.stringify({
      images_per_s: m.checks ? m.checks.values.passes / (data.state.testRunDurationMs / 1000) : 0,
      p50_ms: m.http_req_duration.values.med,
      p99_ms: m.http_req_duration.values["p(99)"],
      failed: m.checks ? m.checks.values.fails : 0,
      dropped: m.dropped_iterations ? m.dropped_iterations.values.count : 0,
    }),
  };
}
