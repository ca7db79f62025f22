// Open-loop load: RATE arrivals a second for DURATION, one line a request on the log: start, status, version, duration.
import http from "k6/http";

const image = open(__ENV.IMAGE, "b");
const headers = { "Content-Type": "application/octet-stream" };
if (__ENV.KEY) headers["X-API-Key"] = __ENV.KEY;
if (__ENV.TOKEN) headers.Authorization = `Bearer ${__ENV.TOKEN}`;

export const options = {
  scenarios: {
    load: {
      executor: "constant-arrival-rate",
      rate: Number(__ENV.RATE),
      timeUnit: "1s",
      duration: __ENV.DURATION,
      preAllocatedVUs: Number(__ENV.CONNECTIONS),
      maxVUs: Number(__ENV.CONNECTIONS),
      gracefulStop: "30s",
    },
  },
  summaryTrendStats: ["med", "p(99)"],
};

export default function () {
  const started = Date.now();
  const answer = http.post(__ENV.URL, image, { headers, timeout: "30s" });
  const version = answer.headers["X-Imgcls-Version"] || "-";
  const id = answer.headers["X-Request-Id"] || "-";
  const body = answer.status === 200 ? "-" : encodeURIComponent(String(answer.body || answer.error || "-").slice(0, 300));
  console.log(`${started} ${answer.status} ${version} ${answer.timings.duration.toFixed(1)} ${id} ${body}`);
}

export function handleSummary(data) {
  const dropped = data.metrics.dropped_iterations ? data.metrics.dropped_iterations.values.count : 0;
  return { stdout: JSON.stringify({ dropped }) + "\n" };
}
