// node validate.mjs FILE.glb: Khronos' validator's report as JSON, every severity included.
import { readFile } from "node:fs/promises";
import { validateBytes } from "gltf-validator";

const report = await validateBytes(new Uint8Array(await readFile(process.argv[2])));
console.log(JSON.stringify(report));
