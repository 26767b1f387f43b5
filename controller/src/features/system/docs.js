// Lists every operation of the API's description, by tag. Texts are set as text, never as markup.
const METHODS = ['get', 'post', 'put', 'patch', 'delete']

function element(name, text, parent) {
  const made = document.createElement(name)
  if (text) made.textContent = text
  parent.append(made)
  return made
}

function operation(parent, path, method, described) {
  const details = element('details', '', parent)
  const summary = element('summary', '', details)
  element('code', method.toUpperCase(), summary).className = 'method'
  element('code', path, summary)
  element('span', ` ${described.summary ?? ''}`, summary)
  if (described.description) element('p', described.description, details)
  for (const part of ['parameters', 'requestBody', 'responses']) {
    if (!described[part]) continue
    element('h4', part, details)
    element('pre', JSON.stringify(described[part], null, 2), details)
  }
}

function show(description) {
  document.getElementById('about').textContent =
    `${description.info.title} ${description.info.version}: ${description.info.description ?? ''}`
  const byTag = new Map()
  for (const [path, item] of Object.entries(description.paths)) {
    for (const method of METHODS) {
      const described = item[method]
      if (!described) continue
      const tag = described.tags?.[0] ?? 'other'
      byTag.set(tag, [...(byTag.get(tag) ?? []), [path, method, described]])
    }
  }
  const main = document.getElementById('operations')
  for (const [tag, operations] of [...byTag].sort()) {
    element('h2', tag, main)
    for (const [path, method, described] of operations) operation(main, path, method, described)
  }
  element('h2', 'schemas', main)
  element('pre', JSON.stringify(description.components?.schemas ?? {}, null, 2), main)
}

fetch('/api/v1/openapi.json')
  .then((answer) => answer.json())
  .then(show)
  .catch((error) => {
    document.getElementById('about').textContent = `The description could not be loaded: ${error}`
  })
