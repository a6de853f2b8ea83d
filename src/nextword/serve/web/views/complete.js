import { h } from "../dom.js";

export default {
  id: "complete",
  title: "Complete",
  mount(root, app) {
    root.append(h("p", {}, `${app.model} is served here. This view is being written.`));
  },
};
