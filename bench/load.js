// A closed loop of VUS connections for DURATION, each sending the next of the images; run by bench/load.py.
import http from "k6/http";
import { check } from "k6";

const images = JSON.parse(open(__ENV.IMAGES)).map((path) => open(path, "b"));
const headers = { "Content-Type": "application/octet-stream", Authorization: `Bearer ${__ENV.TOKEN}` };

export const options = {
  scenarios: { load: { executor: "constant-vus", vus: Number(__ENV.VUS), duration: __ENV.DURATION, gracefulStop: "30s" } },
  summaryTrendStats: ["med", "p(99)"],
};

export default function () {
  const answer = http.post(__ENV.URL, images[(__VU * 7919 + __ITER) % images.length], { headers });
  check(answer, { "is 200": (r) => r.status === 200 });
}

export function handleSummary(data) {
  const m = data.metrics;
  return {
    stdout: JSON.stringify({
      images_per_s: m.http_reqs.values.rate,
      p50_ms: m.http_req_duration.values.med,
      p99_ms: m.http_req_duration.values["p(99)"],
      failed: m.checks ? m.checks.values.fails : 0,
    }),
  };
}
