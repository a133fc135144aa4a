// The official JavaScript clients, told by line what to do: {"do": NAME, "base": URL, …} in, {"said": …} or
// {"error": {…}} out. What came over the wire of a stream is told beside it, as `raw`.
import readline from "node:readline";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const KEY = "sk-client-canary-77aa";
let raw = "";

/** As `fetch`, and keeps what the body of a stream says. */
async function listening(url, init) {
  const answer = await fetch(url, init);
  if (!answer.body || !(answer.headers.get("content-type") ?? "").startsWith("text/event-stream")) return answer;
  const decoder = new TextDecoder();
  const kept = new TransformStream({
    transform(piece, controller) {
      raw += decoder.decode(piece, { stream: true });
      controller.enqueue(piece);
    },
  });
  return new Response(answer.body.pipeThrough(kept), { status: answer.status, headers: answer.headers });
}

const openai = (base) => new OpenAI({ baseURL: `${base}/v1`, apiKey: KEY, maxRetries: 0, fetch: listening });
const anthropic = (base) => new Anthropic({ baseURL: base, apiKey: KEY, maxRetries: 0, fetch: listening });

/** Leaves after `count` events, as a person does who presses Stop. */
async function leave(stream, count) {
  let seen = 0;
  try {
    for await (const _ of stream) if (++seen === count) stream.controller.abort();
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof OpenAI.APIUserAbortError)) throw error;
  }
  return { seen };
}

const DO = {
  chat: ({ base, body }) => openai(base).chat.completions.create(body),
  completion: ({ base, body }) => openai(base).completions.create(body),
  embeddings: ({ base, body }) => openai(base).embeddings.create(body),
  async chat_stream({ base, body }) {
    return await openai(base).chat.completions.stream(body).finalChatCompletion();
  },
  async chat_leave({ base, body, after }) {
    return await leave(await openai(base).chat.completions.create({ ...body, stream: true }), after);
  },
  responses: ({ base, body }) => openai(base).responses.create(body),
  async responses_stream({ base, body }) {
    return await openai(base).responses.stream(body).finalResponse();
  },
  async responses_kept({ base, body }) {
    const client = openai(base);
    const first = await client.responses.create(body);
    const next = await client.responses.create({ ...body, previous_response_id: first.id });
    const again = await client.responses.retrieve(first.id);
    const items = [];
    for await (const item of client.responses.inputItems.list(next.id)) items.push(item);
    await client.responses.delete(first.id);
    return { first, next, again, items };
  },
  async responses_leave({ base, body, after }) {
    return await leave(await openai(base).responses.create({ ...body, stream: true }), after);
  },
  messages: ({ base, body }) => anthropic(base).messages.create(body),
  count: ({ base, body }) => anthropic(base).messages.countTokens(body),
  async messages_stream({ base, body }) {
    return await anthropic(base).messages.stream(body).finalMessage();
  },
  async messages_leave({ base, body, after }) {
    return await leave(await anthropic(base).messages.create({ ...body, stream: true }), after);
  },
  async models({ base }) {
    const [one, two] = [[], []];
    for await (const model of openai(base).models.list()) one.push(model.id);
    for await (const model of anthropic(base).models.list({ limit: 1 })) two.push(model.id);
    return { openai: one, anthropic: two };
  },
  async model({ base, name }) {
    const one = await openai(base).models.retrieve(name);
    const two = await anthropic(base).models.retrieve(name);
    return { openai: one.id, anthropic: two.id };
  },
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  const told = JSON.parse(line);
  raw = "";
  let out;
  try {
    out = { said: await DO[told.do](told) };
  } catch (error) {
    out = {
      error: {
        kind: error.constructor.name,
        status: error.status ?? null,
        message: String(error.message),
        body: error.error ?? null,
        request: error.requestID ?? null,
      },
    };
  }
  process.stdout.write(`${JSON.stringify({ ...out, raw })}\n`);
}
