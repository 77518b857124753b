// Asks a server through the npm package `openai`; prints what came back as one JSON object.
//
//     node chat.mjs PATH/TO/openai/index.mjs http://127.0.0.1:8000/v1

import { pathToFileURL } from "node:url";

const [packagePath, baseURL] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(packagePath).href);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const question = {
  model: "chat",
  messages: [{ role: "user", content: "Name the capital of France in a sentence." }],
  temperature: 0,
  max_tokens: 24,
};
const found = {};

found.models = [];
for await (const model of client.models.list()) found.models.push(model.id);

found.whole = await client.chat.completions.create(question);

found.events = [];
const streamed = { ...question, stream: true, stream_options: { include_usage: true } };
for await (const event of await client.chat.completions.create(streamed)) found.events.push(event);

const gathering = client.chat.completions.stream(question);
found.gathered = (await gathering.finalChatCompletion()).choices[0].message.content;

const schema = {
  type: "object",
  properties: { age: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["age"],
  additionalProperties: false,
};
const shaped = await client.chat.completions.parse({
  ...question,
  response_format: { type: "json_schema", json_schema: { name: "age", strict: true, schema } },
});
found.parsed = JSON.parse(shaped.choices[0].message.content);

const counting = { model: "chat", prompt: "1, 2, 3, 4,", max_tokens: 12, temperature: 0, stop: "7" };
found.completion = (await client.completions.create(counting)).choices[0].text;

const long = { ...question, max_tokens: 2000, temperature: 1.5, ignore_eos: true, stream: true };
found.left_after = 0;
for await (const event of await client.chat.completions.create(long)) {
  found.left_after += event.choices.length;
  if (found.left_after > 3) break;
}

try {
  await client.chat.completions.create({ ...question, max_tokens: 0 });
} catch (error) {
  found.error = { name: error.constructor.name, status: error.status, message: error.message };
}

console.log(JSON.stringify(found));
