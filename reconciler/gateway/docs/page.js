// Shows the gateway's own description, and sends the key, where one is needed, with what is tried here. The key is held
// in a variable of this page and written nowhere.
"use strict";

let key = "";

async function show() {
  const answer = await fetch("openapi.json", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (answer.status === 401) {
    document.getElementById("why").textContent = key ? "This key is not known here." : "";
    document.getElementById("key").hidden = false;
    document.getElementById("secret").focus();
    return;
  }
  const spec = await answer.json();
  if (!answer.ok) {
    document.getElementById("key").hidden = false;
    document.getElementById("why").textContent = spec.error ? spec.error.message : `It answered ${answer.status}.`;
    return;
  }
  document.getElementById("key").hidden = true;
  SwaggerUIBundle({
    spec,
    dom_id: "#api",
    presets: [SwaggerUIBundle.presets.apis],
    validatorUrl: null,
    queryConfigEnabled: false,
    persistAuthorization: false,
    requestInterceptor(request) {
      const here = new URL(request.url, location.href).origin === location.origin;
      if (key && here && !request.headers.Authorization && !request.headers["x-api-key"]) {
        request.headers.Authorization = `Bearer ${key}`;
      }
      return request;
    },
  });
}

document.getElementById("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = document.getElementById("secret").value;
  document.getElementById("secret").value = "";
  show();
});
show();
